"""Roots and contents that make trouble: full disks, roots that cannot be written, foreign folders, hostile names and numbers."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import resource
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from deltalake import DeltaTable

from spark_tracking.address import LakeUri
from spark_tracking.cli import main
from spark_tracking.errors import LakeError, LakeFormatError, LakeReadOnly, NoSpace
from spark_tracking.lake import Event, Lake, MetricBlock, root_folder
from spark_tracking.lake.derived_table import DerivedTable
from tests.lake.making import param, points, run_created, tag, what

Another = Callable[[], Lake]
SPAWN = multiprocessing.get_context("spawn")
NOBODY = 65534
HOSTILE = [
    "it's",
    '"double"',
    "a/b\\c",
    "%s %d {x} $y",
    "'; DROP TABLE runs_latest; --",
    "\U0001f600 \u202e",
    "line\nbreak\ttab\x00nul",
    " ",
    "",
    "z" * 5000,
]


def in_process(do: Callable[..., Any], *arguments: Any) -> Any:
    """What a function answers in a new process."""
    with SPAWN.Pool(1) as pool:
        return pool.apply(do, arguments)


# -- roots --------------------------------------------------------------------------------------------------------


def test_a_missing_lake_is_an_error_that_says_how_to_make_one(lake_uri: str) -> None:
    with pytest.raises(LakeFormatError, match="spark-tracking lake init"):
        Lake.open(lake_uri)
    assert not Path(LakeUri.parse(lake_uri).root).exists()


def test_a_folder_with_other_files_is_left_alone(lake_uri: str) -> None:
    root = Path(LakeUri.parse(lake_uri).root)
    root.mkdir()
    (root / "thesis.docx").touch()
    with pytest.raises(LakeFormatError, match=r"thesis\.docx"):
        Lake.open(lake_uri, create=True)
    assert os.listdir(root) == ["thesis.docx"]


def test_a_newer_format_is_refused_and_says_what_to_do(lake: Lake) -> None:
    lake.close()
    Lake._open.clear()
    marker = Path(lake.uri.root) / "lake.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "format": 99}))
    with pytest.raises(LakeFormatError, match=r"format 99.*pip install --upgrade"):
        Lake.open(lake.uri)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "new"}', "\x00\x00"])
def test_a_broken_description_is_an_error_that_names_the_file(lake: Lake, text: str) -> None:
    Lake._open.clear()
    (Path(lake.uri.root) / "lake.json").write_text(text)
    with pytest.raises(LakeFormatError, match=r"lake\.json"):
        Lake.open(lake.uri)


def test_a_lake_whose_making_was_cut_off_is_made_again(lake_uri: str) -> None:
    lake = Lake.open(lake_uri, create=True)
    lake.close()
    Lake._open.clear()
    (Path(lake.uri.root) / "lake.json").unlink()  # it is written last
    again = Lake.open(lake_uri, create=True)
    assert again.get("experiment", "0") is not None
    again.close()


def _make(uri: str) -> str | None:
    default = Lake.open(uri, create=True).get("experiment", "0")
    return default and default.attr("name")


def test_processes_that_make_the_same_lake_at_once_share_it(lake_uri: str) -> None:
    with SPAWN.Pool(4) as pool:
        assert pool.map(_make, [lake_uri] * 8, chunksize=1) == ["Default"] * 8
    lake = Lake.open(lake_uri)
    assert [e.id for e in lake.search("experiment")] == ["0"]
    assert lake.check().problems == []
    lake.close()


def _read_only(uri: str) -> list[str]:
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    lake = Lake.open(uri, create=True)
    seen = [
        str(len(lake.search("run"))),
        str(lake.metric_history("r1").num_rows),
        str(lake.scan("run_metrics_history").read_all().num_rows),
        str(lake.scan("events").read_all().num_rows > 0),
        str(lake.scan("runs_latest").read_all().num_rows),
        *(str(lake.scan(name, as_of=datetime.now(timezone.utc)).read_all().num_rows) for name in ("runs_latest", "run_metrics_history")),
        str(lake.check().problems),
    ]
    for change in (lambda: lake.write(run_created("r3")), lake.settle, lake.compact, lambda: lake.purge("run", ["r1"])):
        try:
            change()
        except LakeError as error:
            seen.append(f"{type(error).__name__}: {'write permission' in error.message}")
    lake.close()
    return seen


def test_a_lake_that_cannot_be_written_can_be_read() -> None:
    with tempfile.TemporaryDirectory() as scratch:  # pytest's own folders are closed to the user that reads
        lake = Lake.open(f"delta://{scratch}/lake", create=True)
        lake.write(run_created("r1"), [points("r1", "m", 1.0)])
        lake.settle()
        lake.write(run_created("r2"), [points("r1", "m", 2.0, step=1)])  # only in the journal
        _change_modes(Path(scratch), 0o555)
        try:
            seen = in_process(_read_only, str(lake.uri))
        finally:
            _change_modes(Path(scratch), 0o755)
        lake.close()
        Lake._open.clear()
    assert seen[:8] == ["2", "2", "2", "True", "2", "2", "2", "[]"]
    assert seen[8:] == ["LakeReadOnly: True"] * 4


def _change_modes(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            Path(path, name).chmod(mode)


def _fill(uri: str) -> list[str]:
    lake = Lake.open(uri)
    lake.write(run_created("r1"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    stored, said = 0, ""
    for number in range(100):
        try:
            lake.write([tag("r1", f"k{number}", "x" * 500)])
            stored += 1
        except LakeError as error:
            said = error.message
            break
    for number in range(3):  # smaller than a whole file: goes into a new segment
        lake.write([tag("r1", f"later{number}", "y")])
    return [str(stored), said]


def test_a_full_disk_is_a_clear_error_and_costs_only_the_call_that_failed(lake: Lake) -> None:
    stored, said = in_process(_fill, str(lake.uri))
    assert 20 < int(stored) < 100
    assert "The call was not stored" in said or "could not be written" in said
    found = lake.get("run", "r1").items("tag")  # type: ignore[union-attr]
    assert set(found) == {*(f"k{n}" for n in range(int(stored))), "later0", "later1", "later2"}
    lake.settle()
    assert lake.check().problems == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of a few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("only root can mount a file system of its own here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_on_a_full_disk_every_call_says_what_to_do_and_that_frees_space(small_disk: Path) -> None:
    lake = Lake(LakeUri.parse(str(small_disk / "lake")))
    root_folder.ensure(lake.uri, create=True)
    for number in range(20):
        lake.write(run_created(f"r{number}", note="x" * 300), [points(f"r{number}", "m", *range(20))])
        lake.settle()
    lake.compact()  # leaves what went into larger files, until a vacuum
    before = {run.id: what(run) for run in lake.search("run")}
    with open(small_disk / "ballast", "wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 512):
            pass
    with pytest.raises(NoSpace, match=f"spark-tracking lake vacuum --keep-hours 0 {lake.uri.root}"):
        lake.write(run_created("late", note="y" * 9000))
    for call in (lake.settle, lake.compact):
        with suppress(NoSpace):  # nothing else; there may be nothing to do
            call()
    freed = CliRunner().invoke(main, ["lake", "vacuum", "--keep-hours", "0", lake.uri.root])
    assert freed.exit_code == 0, freed.output
    Lake._open.pop(lake.uri.root, None)
    lake.write(run_created("after"))
    lake.settle()
    assert {run.id: what(run) for run in lake.search("run", "run_id NOT IN ('late', 'after')")} == before
    assert lake.get("run", "after") is not None
    assert lake.check().problems == []
    lake.close()


# -- contents -----------------------------------------------------------------------------------------------------


def test_hostile_names_go_through_journal_log_and_tables(lake: Lake, another: Another) -> None:
    for n, text in enumerate(HOSTILE):
        lake.write([*run_created(f"r{n}"), tag(f"r{n}", text, text), param(f"r{n}", text, text)], [points(f"r{n}", text, 1.0)])
        values = {"created": "1", "updated": "1", "description": text}
        lake.commit(lambda text=text, values=values: [Event("registered_model", text, "attr", k, v) for k, v in values.items()])  # type: ignore[misc]
    before = {kind: {e.id: what(e) for e in lake.search(kind)} for kind in ("run", "registered_model")}
    assert len(before["run"]) == len(before["registered_model"]) == len(HOSTILE)
    for process in (lake, another(), another()):
        process.refresh()
        assert {kind: {e.id: what(e) for e in process.search(kind)} for kind in before} == before
        for n, text in enumerate(HOSTILE):
            process.write([tag(f"r{n}", "again", text)])
            assert process.metric_history(f"r{n}", text).num_rows == 1
        before = {kind: {e.id: what(e) for e in process.search(kind)} for kind in before}
    lake.purge("registered_model", HOSTILE)
    lake.refresh()
    assert lake.search("registered_model") == [] and another().search("registered_model") == []
    assert lake.check().problems == []


@pytest.mark.parametrize("ms", [0, -1, 253_402_300_800_000, 1_700_000_000_000_000, 1_700_000_000_000_000_000, 2**63 - 1, -(2**63)])
def test_times_beyond_the_calendar_break_nothing(lake: Lake, another: Another, ms: int) -> None:
    """Microseconds or nanoseconds taken for milliseconds, by mistake."""
    block = MetricBlock("r1", "0", ["m", "m"], [1.0, 2.0], [ms, 1], [0, 0], model_id="m-1")
    lake.write(
        [*run_created("r1"), Event("run", "r1", "attr", "end_time", str(ms)), Event("logged_model", "m-1", "attr", "created", "1")], [block]
    )
    before = what(lake.get("run", "r1"))
    assert lake.count("run") == 1
    lake.settle()
    reader = another()
    assert what(reader.get("run", "r1")) == before
    assert sorted(reader.metric_history("r1")["metric_value"].to_pylist()) == [1.0, 2.0]
    assert len(reader.search("logged_model")) == 1
    assert lake.check().problems == []


def test_values_that_are_no_numbers_go_through(lake: Lake, another: Another) -> None:
    values = [math.nan, math.inf, -math.inf, 0.0, 5e-324, 1.7976931348623157e308]
    lake.write(run_created("r1"), [points("r1", f"m{n}", value) for n, value in enumerate(values)])
    lake.write((), [points("r1", "mixed", math.nan, 2.0, math.nan)])
    before = what(lake.get("run", "r1"))
    lake.settle()
    entity = another().get("run", "r1")
    assert entity is not None and what(entity) == before
    assert repr([entity.metrics[f"m{n}"].latest.value for n in range(len(values))]) == repr(values)
    assert (entity.metrics["mixed"].minimum, entity.metrics["mixed"].maximum) == (2.0, 2.0)
    stored = another().metric_history("r1")["metric_value"].to_pylist()
    assert sum(math.isnan(value) for value in stored) == 3


def test_a_number_that_fits_nowhere_is_refused_whole(lake: Lake) -> None:
    lake.write(run_created("r1"))
    with pytest.raises((LakeError, OverflowError)):
        lake.write([tag("r1", "half", "call")], [points("r1", "m", 1.0, step=2**63)])
    assert lake.get("run", "r1").items("tag") == {}  # type: ignore[union-attr]


def test_a_purge_stands_against_what_comes_late(lake: Lake, another: Another) -> None:
    late = another()
    lake.write(run_created("r1"), [points("r1", "m", 1.0)])
    lake.settle()
    lake.purge("run", ["r1"])
    late._clock._last = 0
    late._journal.own.append(_old_record())
    for _ in range(2):
        assert lake.get("run", "r1") is None
        assert another().search("run") == []
        lake.settle()
    lake.drop_purged()
    assert another().get("run", "r1") is None
    assert lake.check().problems == []


def _old_record() -> bytes:
    from spark_tracking.lake.journal_record import PackedBlock, encode, pack_block

    block = points("r1", "m", 3.0)
    return encode(1, [tag("r1", "late", "yes")], [PackedBlock("r1", None, pack_block(block))])


def test_read_only_errors_are_ours(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as closed:
        closed.setattr(os, "write", refused)
        with pytest.raises(LakeReadOnly, match="write permission"):
            lake.write(run_created("r1"))
    lake.write(run_created("r1"))
    assert lake.get("run", "r1") is not None


def test_a_refresh_longer_than_others_wait_is_passed_by_no_thread_of_its_process(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_tracking.delta.folder.WAIT_SECONDS", 0.05)
    write = DerivedTable.write

    def slow(*arguments: Any) -> None:
        time.sleep(0.5)
        write(*arguments)

    monkeypatch.setattr(DerivedTable, "write", slow)
    lake.write(run_created("r1"), [points("r1", "m", 1.0)])
    first = threading.Thread(target=lake.settle)
    first.start()
    time.sleep(0.2)
    lake.write(run_created("r2"), [points("r2", "m", 2.0)])
    lake.settle()
    first.join()
    for table, column in (("runs_latest", "run_id"), ("run_metrics_history", "run_id")):
        ids = DeltaTable(f"{lake.uri.root}/{table}").to_pyarrow_table(columns=[column])[column].to_pylist()
        assert sorted(ids) == ["r1", "r2"]
