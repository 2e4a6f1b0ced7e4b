"""What happens around a scoring job when others write, something breaks, or the machine is full: nothing is lost, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from scoring_models import NUMBERS

from spark_tracking.delta import files as delta_files
from spark_tracking.errors import InvalidState
from spark_tracking.scoring import by_spark, history, score_table, staging
from spark_tracking.scoring.by_files import FilesStrategy
from spark_tracking.scoring.by_spark import SparkStrategy
from spark_tracking.scoring.staging import Attempt, attempt, sweep


@pytest.fixture
def source(spark: SparkSession, tmp_path: Path) -> str:
    path = str(tmp_path / "source")
    spark.createDataFrame(NUMBERS.assign(id=range(200), day=["mon", "tue"] * 100)).coalesce(1).write.format("delta").save(path)
    return path


def ids(spark: SparkSession, target: str | Path) -> list[int]:
    return sorted(row[0] for row in spark.read.format("delta").load(str(target)).select("id").collect())


def together(*calls: Callable[[], Any]) -> list[Any]:
    ready = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        ready.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


SETTINGS = ("commitInfo.userMetadata", "write.txnAppId", "write.txnVersion")


def mixed(spark: SparkSession, model: str, source: str, folder: Path) -> None:
    """Two named merges and an append at once in one session, and the user's own writes beside them."""
    mine = str(folder / "mine")
    stop = threading.Event()
    kept = []

    def append() -> None:
        while not stop.wait(0.5) or len(kept) < 3:
            start = 10 * len(kept)
            spark.range(start, start + 10, 1, 1).write.format("delta").mode("append").save(mine)
            kept.append(start)

    def job(name: str, mode: Any, where: str) -> Callable[[], Any]:
        keys = ["id"] if mode == "merge" else []
        more: dict[str, Any] = {"keep": ["id"], "mode": mode, "keys": keys, "job": name, "where": where, "result_type": "double"}
        return lambda: [score_table(spark, model, source, str(folder / f"t-{name}"), **more) for _ in range(2)]

    with ThreadPoolExecutor(1) as pool:
        user = pool.submit(append)
        try:
            done = together(job("a", "merge", "id < 50"), job("b", "merge", "id >= 50"), job("c", "append", "id < 120"))
        finally:
            stop.set()
        user.result(120)
    for name, rows, (first, again) in zip("abc", (50, 150, 120), done, strict=True):
        assert (first.status, first.rows, again.status) == ("scored", rows, "nothing new")
        commits = history(str(folder / f"t-{name}"))
        assert [commit.facts["job"].split("/")[0] for commit in commits] == [name]
        assert len(ids(spark, folder / f"t-{name}")) == rows
    score_table(spark, model, source, str(folder / "t-a"), keep=["id"], mode="merge", keys=["id"], job="again", result_type="double")
    frames = [spark.range(10 * len(kept), 10 * len(kept) + 10)]  # in the very thread that merged
    if hasattr(spark, "_jsparkSession"):
        frames.append(spark.sparkContext.parallelize([(10 * len(kept) + 10,)]).toDF("id long"))
    for frame in frames:
        frame.write.format("delta").mode("append").save(mine)
    assert ids(spark, mine) == list(range(sum(10 for _ in kept) + sum(frame.count() for frame in frames)))
    assert all(commit.get("userMetadata") is None for commit in delta_files.history(mine))
    assert [spark.conf.get(f"spark.databricks.delta.{name}", None) for name in SETTINGS] == [None] * 3
    assert not [view.name for view in spark.catalog.listTables() if view.name.startswith("spark_tracking")]


@contextmanager
def alone(spark: SparkSession, settings: dict[str, str]) -> Iterator[None]:
    """As on Spark Connect 4.0, which makes no session beside this one."""
    yield None


@pytest.mark.parametrize("beside", [True, False])
def test_jobs_and_a_users_writes_at_once_in_one_session_are_exact(
    spark: SparkSession, source: str, regressor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    if not beside:
        monkeypatch.setattr(by_spark, "session_beside", alone)
    mixed(spark, regressor, source, tmp_path)


@pytest.mark.parametrize("beside", [True, False])
def test_a_merge_into_a_wider_target_keeps_what_it_does_not_write_and_is_done_once(
    spark: SparkSession, source: str, regressor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    target = str(tmp_path / "target")
    columns = (
        "id BIGINT, note STRING, prediction DOUBLE, twice BIGINT GENERATED ALWAYS AS (id * 2), number BIGINT GENERATED ALWAYS AS IDENTITY"
    )
    spark.sql(f"CREATE TABLE delta.`{target}` ({columns}) USING delta TBLPROPERTIES ('delta.enableChangeDataFeed' = 'true')")
    spark.sql(f"INSERT INTO delta.`{target}` (id, note) SELECT id, 'mine' FROM range(300)")
    if not beside:
        monkeypatch.setattr(by_spark, "session_beside", alone)
    job: dict[str, Any] = {"keep": ["id"], "mode": "merge", "keys": ["id"], "since": "last", "job": "j"}
    result = score_table(spark, regressor, source, target, **job)
    rows = spark.read.format("delta").load(target)
    assert (result.rows, rows.count(), rows.where("note = 'mine' AND twice = id * 2").count()) == (200, 300, 300)
    assert rows.where("prediction IS NOT NULL").count() == 200
    assert (history(target)[0].version, history(target)[0].rows) == (result.target_version, 200)
    assert score_table(spark, regressor, source, target, **job).status == "nothing new"
    changes = spark.read.format("delta").option("readChangeFeed", "true").option("startingVersion", 2).load(target)
    assert {row[0]: row[1] for row in changes.groupBy("_change_type").count().collect()} == {
        "update_preimage": 200,
        "update_postimage": 200,
    }
    spark.sql(f"UPDATE delta.`{source}` SET a = 100 WHERE id = 7")
    assert score_table(spark, regressor, source, target, **job).rows == 200
    assert rows.where("id = 7 AND prediction > 100").count() == 1


@pytest.mark.parametrize("step", ["_no_rows", "_save"])
def test_a_merge_that_ends_before_it_is_noted_is_merged_again_to_the_same_rows(
    spark: SparkSession, source: str, regressor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    target, more = str(tmp_path / "target"), {"keep": ["id"], "mode": "merge", "keys": ["id"], "job": "j"}
    score_table(spark, regressor, source, target, keep=["id"], where="id < 50")

    def broken(*given: Any) -> Any:
        raise Injected

    monkeypatch.setattr(by_spark, "session_beside", alone)
    with monkeypatch.context() as patch:
        patch.setattr(SparkStrategy, step, broken)
        with pytest.raises(Injected):
            score_table(spark, regressor, source, target, **more)  # type: ignore[arg-type]
    assert ids(spark, target) == list(range(200))
    again = score_table(spark, regressor, source, target, **more)  # type: ignore[arg-type]
    assert (again.status, again.rows, ids(spark, target)) == ("scored", 200, list(range(200)))
    assert score_table(spark, regressor, source, target, **more).status == "nothing new"  # type: ignore[arg-type]


class Injected(Exception):
    """What the tests make happen."""


ON_CONNECT = """
import os, sys, pyspark
from pathlib import Path
os.environ["SPARK_HOME"] = os.path.dirname(pyspark.__file__)
sys.path.insert(0, os.path.dirname({here!r}))
from spark_tracking.spark.local import local_spark
from test_trouble import mixed
spark = local_spark(connect=True)
if {old}:
    del type(spark).cloneSession  # as before 4.1
mixed(spark, sys.argv[1], sys.argv[2], Path(sys.argv[3]))
print("exact")
spark.stop()
"""


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_jobs_and_a_users_writes_at_once_are_exact_on_connect(source: str, regressor: str, tmp_path: Path, old: bool) -> None:
    command = [sys.executable, "-c", ON_CONNECT.format(here=__file__, old=old), regressor, source, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert "exact" in done.stdout, done.stderr[-3000:]


def test_two_merges_into_one_new_target_at_once_add_each_key_once(spark: SparkSession, source: str, regressor: str, tmp_path: Path) -> None:
    target = str(tmp_path / "target")

    def job(where: str) -> Callable[[], Any]:
        return lambda: score_table(spark, regressor, source, target, keep=["id"], mode="merge", keys=["id"], where=where)

    assert [result.rows for result in together(job("id < 120"), job("id >= 80"))] == [120, 120]
    assert ids(spark, target) == list(range(200))


STEPS: dict[str, tuple[Any, str, str]] = {
    "before the workers": (FilesStrategy, "_score", "before"),
    "behind the workers": (FilesStrategy, "_score", "after"),
    "as the right to commit is taken": (Attempt, "claim", "after"),
    "as the table is made": (delta_files, "create", "after"),
    "as the commit begins": (delta_files, "commit", "before"),
    "in the commit": (delta_files.DeltaTable, "create_write_transaction", "before"),
    "as the commit has landed": (delta_files.DeltaTable, "create_write_transaction", "after"),
    "as its version is read": (delta_files, "_version_of", "before"),
    "behind the commit": (delta_files, "commit", "after"),
    "as the rest is tidied up": (Attempt, "drop_all_but", "before"),
    "at the very end": (FilesStrategy, "write", "after"),
    "as Spark writes": (SparkStrategy, "_write", "before"),
    "as Spark has written": (SparkStrategy, "_write", "after"),
    "as Spark has merged": (SparkStrategy, "_merge", "after"),
}
MODES: list[dict[str, Any]] = [
    {"mode": "append"},
    {"mode": "overwrite"},
    {"mode": "overwrite_partitions", "partition_by": ["day"]},
    {"mode": "merge", "keys": ["id"]},
]


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_whatever_breaks_wherever_the_target_holds_all_or_nothing_and_the_next_run_finishes(
    spark: SparkSession, source: str, regressor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    owner, name, when = STEPS[step]
    real = getattr(owner, name)

    def broken(*given: Any, **more: Any) -> Any:
        result = real(*given, **more) if when == "after" else None
        if armed:
            armed.clear()
            raise kind[0]
        return result if when == "after" else real(*given, **more)

    spark_writes = owner is SparkStrategy
    for number, more in enumerate(MODES):
        if (more["mode"] == "merge") != (name == "_merge"):
            continue
        for existing, error in ((False, KeyboardInterrupt), (True, Injected)):
            target, armed, kind = tmp_path / f"target{number}{existing}", [True], [error]
            job: dict[str, Any] = {"keep": ["id", "day"], "strategy": "udf" if spark_writes else "files", "job": "j", **more}
            if existing:
                kinds = {"partition_by": more.get("partition_by", [])}
                score_table(spark, regressor, source, str(target), keep=["id", "day"], where="id < 0", strategy="udf", **kinds)
            monkeypatch.setattr(owner, name, broken)
            with suppress(error):
                score_table(spark, regressor, source, str(target), **job)
            monkeypatch.setattr(owner, name, real)
            there = delta_files.newest_version(str(target)) is not None
            assert not there or len(ids(spark, target)) in (0, 200)  # readable: no file of it is missing
            score_table(spark, regressor, source, str(target), **job)
            assert ids(spark, target) == list(range(200))
            if not spark_writes:
                live = {file.path for file in delta_files.snapshot(str(target)).files}
                assert {str(path.relative_to(target)) for path in target.glob("score-*/*.parquet")} == live
                assert not list((target / "_spark_tracking").iterdir())


def test_what_cannot_be_known_of_a_commit_keeps_its_files(
    spark: SparkSession, source: str, regressor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    real = delta_files.commit

    def lost(*given: Any, **more: Any) -> Any:
        real(*given, **more)
        monkeypatch.setattr(delta_files, "history", gone)
        monkeypatch.setattr(delta_files, "snapshot", gone)
        raise OSError("connection lost")

    def gone(*given: Any) -> Any:
        raise OSError("connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(delta_files, "commit", lost)
        with pytest.raises(OSError, match="connection lost"):
            score_table(spark, regressor, source, str(target), keep=["id"], strategy="files", job="j")
    monkeypatch.undo()
    assert ids(spark, target) == list(range(200))
    (note,) = (target / "_spark_tracking").iterdir()
    os.utime(note, (1, 1))
    assert sweep(str(target)) == []
    assert ids(spark, target) == list(range(200))
    assert not list((target / "_spark_tracking").iterdir())


def leave(target: str, token: str, note: str | dict[str, Any], age: float = 0.0) -> Path:
    """A file and a note as an attempt leaves them."""
    file = Path(target) / f"score-{token}" / "part.parquet"
    file.parent.mkdir()
    file.write_bytes(b"x")
    path = Path(target) / "_spark_tracking" / f"{token}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(note if isinstance(note, str) else json.dumps({"version": 0, **note}))
    os.utime(path, (time.time() - age,) * 2)
    return file


def test_dead_attempts_are_swept_by_either_strategy_and_living_ones_stay(
    spark: SparkSession, source: str, regressor: str, tmp_path: Path
) -> None:
    here = staging._process()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = leave(source, "dead", {**here, "pid": str(gone.pid), "born": "1"})
    reused = leave(source, "reused", {**here, "born": "1"})
    silent = leave(source, "silent", {**here, "namespace": "another", "pid": "1"}, age=1000)
    torn = [leave(source, f"torn{number}", text, age=1000) for number, text in enumerate(("", "{", '{"pid": ', "[1]", '"x"', "\0"))]
    elsewhere = leave(source, "elsewhere", {**here, "namespace": "another", "pid": "1"})
    young = leave(source, "young", '{"pid"')
    rebooted = leave(source, "rebooted", {**here, "boot": "another"})
    older = leave(source, "older", {"host": os.uname().nodename, "pid": os.getpid(), "born": "1"})  # as the first version wrote it
    with attempt(source, "living", 0) as running:
        alive = Path(source) / running.folder / "part.parquet"
        alive.parent.mkdir()
        alive.write_bytes(b"x")
        assert not any(file.exists() for file in (dead, reused, silent, *torn))
        assert all(file.exists() for file in (elsewhere, young, rebooted, older))
        assert sweep(source) == []
        assert alive.exists()
        running.claim()
        assert sweep(source) == []
    target = str(tmp_path / "target")
    score_table(spark, regressor, source, target, keep=["id"])
    left = leave(target, "left", {**here, "born": "1"})
    score_table(spark, regressor, source, target, keep=["id"], strategy="udf")
    assert not left.parent.exists()


def test_an_attempt_whose_files_were_swept_does_not_commit(
    spark: SparkSession, source: str, regressor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    real = FilesStrategy._score

    def slept(*given: Any) -> Any:
        written = real(*given)
        (note,) = (target / "_spark_tracking").iterdir()
        note.write_text(json.dumps({"version": 0, "boot": "another"}))
        os.utime(note, (1, 1))
        assert len(sweep(str(target))) == 1
        return written

    monkeypatch.setattr(FilesStrategy, "_score", slept)
    with pytest.raises(
        InvalidState, match=r"no sign of life for 900 s, so another one removed its files .* nothing was written. Run it again"
    ):
        score_table(spark, regressor, source, str(target), keep=["id"], strategy="files")
    assert delta_files.newest_version(str(target)) is None
    monkeypatch.undo()
    assert score_table(spark, regressor, source, str(target), keep=["id"], strategy="files").rows == 200
    assert not list((target / "_spark_tracking").iterdir())


HOLD = """
import sys, time
from pathlib import Path
from spark_tracking.scoring.staging import attempt
with attempt(sys.argv[1], "apart", 0) as running:
    folder = Path(sys.argv[1], running.folder)
    folder.mkdir()
    (folder / "part.parquet").write_bytes(b"x")
    Path(sys.argv[2]).touch()
    while Path(sys.argv[2]).exists():
        time.sleep(0.05)
    running.claim()
    print("may commit")
"""


def test_a_living_job_in_another_process_namespace_of_this_host_is_left_alone(source: str, tmp_path: Path) -> None:
    apart = ["unshare", "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("making a process namespace needs unshare (util-linux) and root")
    flag = tmp_path / "holding"
    with subprocess.Popen([*apart, sys.executable, "-c", HOLD, source, str(flag)], stdout=subprocess.PIPE, text=True) as other:
        for _ in range(1200):
            if flag.exists():
                break
            time.sleep(0.05)
        assert sweep(source) == []
        assert (Path(source) / "score-apart" / "part.parquet").exists()
        flag.unlink()
        assert "may commit" in other.communicate(timeout=60)[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("more", [{"strategy": "files"}, {"strategy": "udf"}, {"mode": "merge", "keys": ["id"]}])
def test_a_full_disk_is_a_sentence_and_leaves_the_target_as_it_was(
    spark: SparkSession, source: str, regressor: str, small_disk: Path, more: dict[str, Any]
) -> None:
    target = small_disk / "target"
    score_table(spark, regressor, source, str(target), keep=["id"])
    big = spark.range(0, 400_000, 1, 2).selectExpr("id", "rand() AS a", "rand() AS b", "rand() AS c")
    big.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(source)
    for filled in (False, True):
        if filled:
            with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
        with pytest.raises(InvalidState) as failed:
            score_table(spark, regressor, source, str(target), keep=["id"], **more)
        said = failed.value.message
        assert "No space left on device" in said and str(target) in said, said
        assert "\n" not in said and len(said) < 400
        assert ids(spark, target) == list(range(200))
        if more == {"strategy": "files"}:
            assert len(list(target.rglob("score-*"))) == 1
    (small_disk / "filler").unlink()
    for path in target.glob("part-*"):  # what Spark left, VACUUM's
        path.unlink()
    assert score_table(spark, regressor, source, str(target), keep=["id"], where="id < 10", strategy="udf").rows == 10


ODD = ["a#b", "a?b", "a%20b", "a%b", "50%25", "a b", "it's", 'say "x"', "ü😀", "a[b]", "x{y}", "a*b", "a^b", "a|b", "a`b", "a;b"]


@pytest.mark.parametrize("name", ODD)
def test_source_and_target_may_have_paths_of_any_characters(
    spark: SparkSession, source: str, regressor: str, tmp_path: Path, name: str
) -> None:
    near, target = tmp_path / f"near {name}", tmp_path / name
    shutil.copytree(source, near)
    twin = tmp_path / name.replace("%20", " ")
    modes: list[dict[str, Any]] = [{}, {"mode": "overwrite"}, {"mode": "merge", "keys": ["id"]}]
    for more in modes:
        assert score_table(spark, regressor, str(near), str(target), keep=["id"], **more).status == "scored", more
        assert ids(spark, target) == list(range(200))
    score_table(spark, regressor, str(near), str(target), keep=["id"], where="id = 7")
    assert sorted(ids(spark, target)) == sorted([*range(200), 7])
    assert twin == target or not twin.exists()
    if delta_files.unreadable_path(str(target)):
        with pytest.raises(InvalidState, match="misreads"):
            history(str(target))
        with pytest.raises(InvalidState, match="Leave since= out"):
            score_table(spark, regressor, source, str(target), keep=["id"], since="last")
    else:
        assert len(history(str(target))) == 4
