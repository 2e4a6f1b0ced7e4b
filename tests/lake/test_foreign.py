"""What others put where a lake lies: it is told of, and nothing of it goes unasked. And where a lake may lie."""

from __future__ import annotations

import logging
import os
import time
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import mlflow
import pyarrow as pa
import pytest
from click.testing import CliRunner
from deltalake import DeltaTable, write_deltalake

import spark_tracking as st
from spark_tracking.address import LakeUri
from spark_tracking.cli import main
from spark_tracking.errors import InvalidUri, LakeFormatError
from spark_tracking.lake import Lake
from tests.lake.making import points, run_created

AT_ONCE = timedelta(0)
DAYS_AGO = time.time() - 3 * 86_400


def lake_command(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["lake", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def old(path: Path) -> Path:
    """Looks as if it had been there for days, which is what vacuum goes by."""
    os.utime(path, (DAYS_AGO, DAYS_AGO))
    return path


@pytest.fixture
def foreign(lake: Lake, tmp_path: Path) -> list[Path]:
    """A file, a whole table, and a link to a folder elsewhere in the folder of `events`."""
    events, elsewhere = lake.uri.path / "events", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious.txt").write_text("mine")
    (events / "my own.csv").write_text("a,b")
    write_deltalake(str(events / "nested"), pa.table({"x": [1]}))
    (events / "link").symlink_to(elsewhere)
    found = [events / "my own.csv", events / "nested", events / "link"]
    for path in [*events.rglob("*"), *elsewhere.iterdir()]:
        if not path.is_symlink():
            old(path)
    return found


def test_vacuum_names_what_is_foreign_and_leaves_it(lake: Lake, foreign: list[Path]) -> None:
    lake.write(run_created("r1"), [points("r1", "m", 1.0)])
    said = lake_command("vacuum", lake.uri.root, "--keep-hours", "0")
    assert all(f"events/{name}: not the lake's; it stays" in said for name in ("my own.csv", "nested/", "link/"))
    assert DeltaTable(str(foreign[1])).to_pyarrow_table().num_rows == 1
    assert all(path.exists() for path in foreign)
    lake_command("maintain", lake.uri.root, "--keep-hours", "0")
    assert all(path.exists() for path in foreign)


def test_vacuum_deletes_what_is_foreign_on_request_and_follows_no_link(lake: Lake, foreign: list[Path], tmp_path: Path) -> None:
    lake_command("vacuum", lake.uri.root, "--foreign", "--dry-run")
    assert all(path.exists() for path in foreign)
    lake_command("vacuum", lake.uri.root, "--foreign")
    assert not any(path.exists() or path.is_symlink() for path in foreign)
    assert (tmp_path / "elsewhere" / "precious.txt").read_text() == "mine"
    assert lake.check().ok


def test_what_a_killed_writer_left_goes_after_a_day(lake: Lake) -> None:
    lake.write(run_created("r1"), [points("r1", "m", 1.0)])
    lake.settle()
    log = lake.uri.path / "run_metrics_history"
    whole = next(log.glob("*.parquet"))
    young, dead = (log / f"part-00000-{n * 8}-1111-4111-8111-111111111111-c000.zstd.parquet" for n in "12")
    for path in (young, dead):
        path.write_bytes(whole.read_bytes())
    old(dead), old(whole)
    assert lake.vacuum(keep=AT_ONCE, dry_run=True)["run_metrics_history"] == [dead.name]
    lake.vacuum(keep=AT_ONCE)
    assert young.exists() and whole.exists() and not dead.exists()


@pytest.mark.parametrize("name", ["events/mine.csv", "events/nested/data.parquet", "runs_latest", "mine.csv"])
def test_a_lake_is_not_made_where_something_lies_in_the_way(tmp_path: Path, name: str) -> None:
    path = tmp_path / "lake" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(LakeFormatError, match="/".join(name.split("/")[:2])):
        Lake.open(LakeUri.parse(tmp_path / "lake"), create=True)
    assert [path for path in (tmp_path / "lake").rglob("*") if path.is_file()] == [path]


def test_a_lake_is_not_made_over_the_delta_tables_of_others(tmp_path: Path) -> None:
    write_deltalake(str(tmp_path / "lake" / "events"), pa.table({"x": [1]}))
    with pytest.raises(LakeFormatError, match="events/, a Delta table with other columns"):
        Lake.open(LakeUri.parse(tmp_path / "lake"), create=True)


def test_a_half_made_lake_is_made_whole(lake: Lake) -> None:
    lake.write(run_created("r1"))
    lake.settle()
    (lake.uri.path / "lake.json").unlink()
    Lake._open.pop(lake.uri.root)
    again = Lake.open(lake.uri, create=True)
    assert again.get("run", "r1") is not None


def test_a_client_that_makes_a_lake_says_so_once(lake_uri: str, caplog: pytest.LogCaptureFixture) -> None:
    mlflow.set_tracking_uri(lake_uri)
    with caplog.at_level(logging.WARNING):
        mlflow.search_experiments()
        mlflow.search_runs(["0"])
    assert [r.getMessage() for r in caplog.records].count(f"Made a new lake at {LakeUri.parse(lake_uri).root}") == 1
    Lake._open.pop(LakeUri.parse(lake_uri).root).close()


@pytest.mark.parametrize("name", ["a#b", "a?b=c", "50% off", "sp ace", "q'uo\"te", "ünï→日本😀", "a:b", "a&b;c,d=e{f}*~`$!<>"])
def test_a_lake_may_lie_at_any_path(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "lake"
    lake_command("init", str(path))
    uri = f"delta://{quote(str(path))}"
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run() as run:
        mlflow.log_metric("m", 1.0)
        mlflow.log_text("hello", "a b/x.txt")
    lake = Lake.open(uri)
    lake.refresh()
    for tracking_uri in (uri, str(lake.uri)):
        assert st.read("runs_latest", tracking_uri=tracking_uri).read_all().num_rows == 1
        assert st.read("run_metrics_history", tracking_uri=tracking_uri).read_all().num_rows == 1
    assert len(mlflow.search_runs(["0"])) == 1
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{quote('a b')}/x.txt") == "hello"
    lake.compact()
    lake.vacuum(keep=AT_ONCE)
    assert "All as acknowledged" in lake_command("check", str(path))
    Lake._open.pop(lake.uri.root).close()


@pytest.mark.parametrize("name", ["la%20ke", "back\\slash", "new\nline", "tab\t", "[x]", "a|b", "a^b"])
def test_a_path_that_delta_cannot_name_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidUri, match="Choose a path without it"):
        Lake.open(LakeUri.parse(tmp_path / name), create=True)
    assert list(tmp_path.iterdir()) == []
