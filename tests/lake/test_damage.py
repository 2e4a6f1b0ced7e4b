"""Whatever happens to a lake's files: it is told in sentences, nothing that is still held anywhere vanishes, and `rebuild` mends it."""

from __future__ import annotations

import os
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from deltalake import DeltaTable
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from spark_tracking.address import LakeUri
from spark_tracking.cli import main
from spark_tracking.kinds.state import ModelPoint
from spark_tracking.lake import Event, Lake
from spark_tracking.lake.journal_record import encode
from tests.lake.making import param, points, run_created, tag, what

LOGS = ("events", "run_metrics_history")
DERIVED = ("experiments_latest", "runs_latest", "logged_models_latest", "registered_models_latest", "model_versions_latest")
KINDS = ("experiment", "run", "logged_model", "registered_model", "model_version")
POINTS = 25


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with a bit of everything: old commits cleaned away behind a checkpoint, newer ones, a purge, a dead writer's segment."""
    root = tmp_path_factory.mktemp("whole") / "lake"
    os.environ["SPARK_TRACKING_FLUSH_SECONDS"] = "3600"
    lake = Lake.open(f"delta://{root}", create=True)
    try:
        for number in range(4):
            _log(lake, number)
        _age(root)
        for number in range(4, 8):
            _log(lake, number)
        lake.write([*run_created("gone"), Event("run", "gone", "attr", "created_by", "me")], [points("gone", "m", 1.0)])
        lake.settle()
        lake.purge("run", ["gone"])
        lake.drop_purged()
        lake.settle()
        lake.close()
    finally:
        Lake._open.pop(lake.uri.root, None)
        del os.environ["SPARK_TRACKING_FLUSH_SECONDS"]
    dead = b"".join(encode((2**45 + n) << 16, [tag("r1", f"dead{n}", "x" * 40)], []) for n in range(5))
    (root / "_journal" / "aaaaaaaaaa-00000.seg").write_bytes(dead)
    return root


def _log(lake: Lake, number: int) -> None:
    run, model = f"r{number}", f"m-{number}"
    of_model = points(run, "acc", *(step / 7 for step in range(POINTS)), model_id=model)
    made = [*run_created(run, t="x"), tag(run, "t", "y"), param(run, "p", "1"), Event("logged_model", model, "attr", "created", "1")]
    made += [Event("run", run, "attr", "created_by", "me"), Event("run", run, "attr", "artifact_uri", "file:///nowhere")]
    lake.write(made, [of_model, points(run, "loss", 3.0, 1.0, 2.0)])
    names = [Event("registered_model", f"model{number}", "attr", "created", "1")]
    names += [Event("model_version", f"model{number}/1", "attr", "created", "1")]
    lake.commit(lambda: names)
    lake.settle()


def _age(root: Path) -> None:
    """What happens to Delta logs after their retention: a checkpoint, and all commits before it go."""
    for name in (*LOGS, "runs_latest"):
        table = DeltaTable(str(root / name))
        for file in (root / name / "_delta_log").iterdir():
            os.utime(file, (time.time() - 7 * 86400,) * 2)
        table.create_checkpoint()
        table.cleanup_metadata()


def commits(folder: Path) -> list[Path]:
    return sorted((folder / "_delta_log").glob("*.json"))


def middle_commit(folder: Path) -> Path:
    return commits(folder)[-2]


def newest_commit(folder: Path) -> Path:
    return commits(folder)[-1]


def checkpoint(folder: Path) -> Path:
    return next((folder / "_delta_log").glob("*.checkpoint.parquet"))


def data_file(folder: Path) -> Path:
    return Path(sorted(DeltaTable(str(folder)).file_uris())[0].removeprefix("file://"))


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def remove_folder(path: Path) -> None:
    shutil.rmtree(path)


TARGETS = [middle_commit, newest_commit, checkpoint, data_file]
DAMAGES = [remove, empty, flip, truncate]
FILES = [(name, target, damage) for name in (*LOGS, "runs_latest") for target in TARGETS for damage in DAMAGES]
FILES += [(name, newest_commit, damage) for name in DERIVED if name != "runs_latest" for damage in DAMAGES]
CASES = [*FILES, *((name, Path, remove_folder) for name in (*LOGS, *DERIVED))]


def command(root: Path, *words: str) -> Result:
    """`spark-tracking lake …`, as a new process would run it; never a traceback."""
    result = CliRunner().invoke(main, ["lake", words[0], str(root), *words[1:]])
    _forget(root)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    if result.exit_code:
        assert "spark-tracking lake" in result.output or "remove the file" in result.output, result.output
    return result


def refusal(call: Callable[[], object]) -> str | None:
    """The message of MLflow's exception, the only one that a call may raise."""
    try:
        call()
    except MlflowException as error:
        return str(error)
    return None


def _forget(root: Path) -> None:
    lake = Lake._open.pop(str(root), None)
    if lake is not None and lake._upkeep.background is not None:
        lake._upkeep.background.stop()


def state(root: Path) -> dict[str, object]:
    lake = Lake(LakeUri.parse(f"delta://{root}"))
    found: dict[str, object] = {f"{kind} {e.id}": what(e) for kind in KINDS for e in lake.search(kind)}
    found["points"] = sorted(map(repr, lake.scan("run_metrics_history", ["run_id", "metric_step", "metric_value"]).read_all().to_pylist()))
    return found


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    root = tmp_path / "lake"
    shutil.copytree(whole, root)
    return root


@pytest.fixture(scope="module")
def before(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    copy = tmp_path_factory.mktemp("copy") / "lake"
    shutil.copytree(whole, copy)
    assert command(copy, "check").exit_code == 0
    return state(copy)


QUICK = {(middle_commit, empty), (middle_commit, remove), (data_file, flip), (Path, remove_folder)}
MARKED = [pytest.param(*case, marks=() if case[1:] in QUICK and case[0] in (*LOGS, "runs_latest") else pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize(("table", "target", "damage"), MARKED, ids=lambda value: getattr(value, "__name__", value))
def test_damage_is_told_in_sentences_costs_nothing_that_is_held_anywhere_and_is_mended(
    damaged: Path, before: dict[str, object], table: str, target: Callable[[Path], Path], damage: Callable[[Path], None]
) -> None:
    damage(target(damaged / table))
    checked = command(damaged, "check")
    for words in (["info"], ["refresh"], ["compact"], ["vacuum", "--keep-hours", "0"]):
        command(damaged, *words)
    client = MlflowClient(f"delta://{damaged}")
    for read in (
        lambda: client.search_runs(["0"]),
        lambda: client.get_run("r1"),
        lambda: client.get_metric_history("r1", "acc"),
        client.search_registered_models,
    ):
        assert "spark-tracking lake" in (refusal(read) or "spark-tracking lake")
    _forget(damaged)
    healed = checked.exit_code == 0
    rebuilt = command(damaged, "rebuild")
    lossy = rebuilt.exit_code != 0
    if lossy:
        assert "--force" in rebuilt.output
        assert table in LOGS and (target in (data_file, Path) or damage is flip), rebuilt.output
        assert command(damaged, "rebuild", "--force").exit_code == 0
    after = command(damaged, "check")
    assert after.exit_code == 0, after.output
    now = state(damaged)
    if not lossy:
        assert now == before
    else:
        assert not healed
        assert before.keys() <= now.keys()
        assert table == "run_metrics_history" or now["points"] == before["points"]


@pytest.mark.parametrize("table", [*LOGS])
@pytest.mark.parametrize("part", [2, 5, 8])
def test_a_byte_that_changed_in_a_file_of_a_log_is_found(damaged: Path, table: str, part: int) -> None:
    path = data_file(damaged / table)
    good = path.read_bytes()
    data = bytearray(good)
    data[len(data) * part // 12] ^= 0xFF
    path.write_bytes(data)
    try:
        same = pq.read_table(path).equals(pq.read_table(_written(path.with_name("good"), good)))
    except Exception:
        same = False
    path.with_name("good").unlink(missing_ok=True)
    if not same:
        assert command(damaged, "check").exit_code == 1
        command(damaged, "rebuild", "--force")
        assert command(damaged, "check").exit_code == 0


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("damage", [flip, truncate, lambda path: os.truncate(path, path.stat().st_size - 1)])
def test_the_end_of_a_dead_writers_segment_that_cannot_be_read_is_reported_and_set_aside(
    damaged: Path, damage: Callable[[Path], None]
) -> None:
    (segment,) = (damaged / "_journal").glob("*.seg")
    damage(segment)
    held = zlib.crc32(segment.read_bytes())
    assert "no whole record" in command(damaged, "check").output
    command(damaged, "refresh")
    assert not list((damaged / "_journal").glob("*.seg"))
    (kept,) = (damaged / "_set_aside").iterdir()
    assert zlib.crc32(kept.read_bytes()) == held
    told = command(damaged, "check")
    assert told.exit_code == 1 and kept.name in told.output
    kept.unlink()
    assert command(damaged, "check").exit_code == 0


def test_a_journal_that_is_gone_is_told_and_made_anew(damaged: Path) -> None:
    shutil.rmtree(damaged / "_journal")
    assert command(damaged, "check").exit_code == 1
    assert command(damaged, "refresh").exit_code != 0
    assert command(damaged, "rebuild").exit_code == 0
    assert command(damaged, "check").exit_code == 0


def test_what_would_vanish_is_named_and_kept_even_where_a_loss_is_accepted(damaged: Path, before: dict[str, object]) -> None:
    shutil.rmtree(damaged / "run_metrics_history")
    refused = command(damaged, "rebuild")
    assert refused.exit_code != 0 and "--force" in refused.output
    assert command(damaged, "rebuild", "--force").exit_code == 0
    (copy,) = (damaged / "_set_aside").glob("*-lost.parquet")
    assert "r1" in pq.read_table(copy)["id"].to_pylist()
    lake = Lake(LakeUri.parse(f"delta://{damaged}"))
    assert lake.get("run", "r1").metrics["acc"].latest.step == POINTS - 1  # type: ignore[union-attr]
    assert ModelPoint("acc", "r1", None, None, 3, 1_700_000_000_000) in lake.get("logged_model", "m-1").points  # type: ignore[union-attr]
    assert copy.name in command(damaged, "check").output


def test_a_process_that_lives_through_damage_and_repair_goes_on(damaged: Path) -> None:
    lake = Lake(LakeUri.parse(f"delta://{damaged}"))
    lake.write(run_created("before"))
    lake.settle()
    remove(middle_commit(damaged / "events"))
    shutil.rmtree(damaged / "runs_latest")
    assert command(damaged, "rebuild").exit_code == 0
    for attempt in range(3):
        refused = refusal(lambda: lake.write(run_created(f"after{attempt}"))) or refusal(lake.settle)  # noqa: B023
        assert refused is None or "spark-tracking lake" in refused
    lake.write(run_created("last"))
    lake.settle()
    assert {"before", "last"} <= {run.id for run in lake.search("run")}
    lake.close()
    assert command(damaged, "check").exit_code == 0
