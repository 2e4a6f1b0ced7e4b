"""What a process finds when others moved on without it: cleaned logs, vacuumed files, changes between two looks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable

from spark_tracking.delta import storage, table
from spark_tracking.lake import Event, Lake, process_view
from spark_tracking.lake.flush import Flusher
from spark_tracking.lake.journals import journal_of
from spark_tracking.lake.process_view import View
from spark_tracking.lake.refresh import Refresher
from spark_tracking.lake.tables import BY_NAME
from tests.lake.making import points, run_created, see_late_what_came_while_it_only_wrote, tag, what

Another = Callable[[], Lake]


def clean_logs(lake: Lake) -> None:
    """What happens to Delta logs after their retention: a checkpoint, and all commits before it go."""
    for name in BY_NAME:
        table = DeltaTable(f"{lake.uri.root}/{name}")
        log = Path(lake.uri.root) / name / "_delta_log"
        long_ago = time.time() - 7 * 86400
        for file in log.iterdir():
            os.utime(file, (long_ago, long_ago))
        table.create_checkpoint()
        table.cleanup_metadata()
        assert table.version() == 0 or not (log / f"{0:020d}.json").exists()


def test_a_process_that_slept_while_logs_were_cleaned_sees_what_came_meanwhile(lake: Lake, another: Another) -> None:
    sleeper = another()
    assert sleeper.get("run", "r1") is None
    lake.write(run_created("r1"))
    lake.settle()
    for n in range(5):
        lake.write([tag("r1", "n", str(n))], [points("r1", "m", float(n), step=n)])
        lake.settle()
    lake.close()  # its journal is gone, too
    clean_logs(lake)
    found = sleeper.get("run", "r1")
    assert found is not None
    assert found.items("tag") == {"n": "4"}
    assert found.metrics["m"].latest.value == 4.0
    assert sleeper.metric_history("r1")["metric_value"].to_pylist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert sleeper.count("run") == 1


def test_a_process_that_slept_while_logs_were_cleaned_can_write_flush_and_refresh(lake: Lake, another: Another) -> None:
    sleeper = another()
    sleeper.write(run_created("r2"))
    sleeper.settle()
    for n in range(5):
        lake.write(run_created(f"r1{n}"))
        lake.settle()
    lake.close()
    clean_logs(lake)
    sleeper.write([tag("r2", "late", "yes")])
    sleeper.settle()
    assert sleeper.count("run") == 6
    newcomer = another()
    assert newcomer.get("run", "r2").items("tag") == {"late": "yes"}  # type: ignore[union-attr]
    assert newcomer.check().problems == []


@pytest.mark.parametrize(("far_behind", "left_out"), [(100, 2**22), (2, 2**22), (100, 0)])
def test_who_only_wrote_for_long_reads_what_was_flushed_and_refreshed_meanwhile(
    lake: Lake, another: Another, monkeypatch: pytest.MonkeyPatch, far_behind: int, left_out: int
) -> None:
    monkeypatch.setattr(process_view, "FAR_BEHIND", far_behind)
    monkeypatch.setattr(process_view, "LEFT_OUT_BYTES", left_out)
    monkeypatch.setattr(process_view, "WRITERS_PATIENCE", -1.0)
    see_late_what_came_while_it_only_wrote(lake, another())


def test_a_refresh_removes_what_is_old_in_the_logs_and_nothing_that_is_needed(
    lake: Lake, another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "COMPACT_EVERY", 1)
    sleeper = another()
    for n in range(3):
        lake.write(run_created(f"r{n}"), [points(f"r{n}", "m", 1.0)])
        lake.settle()
    long_ago = time.time() - 86400
    for name in ("events", "run_metrics_history", "runs_latest"):
        DeltaTable(f"{lake.uri.root}/{name}").create_checkpoint()
        for file in (Path(lake.uri.root) / name / "_delta_log").iterdir():
            os.utime(file, (long_ago, long_ago))
    lake.write(run_created("r9"), [points("r9", "m", 1.0)])
    lake.settle()
    for name in ("events", "run_metrics_history", "runs_latest"):
        assert not (Path(lake.uri.root) / name / "_delta_log" / f"{1:020d}.json").exists(), name
    assert [run.id for run in sleeper.search("run", order_by=["run_id"])] == ["r0", "r1", "r2", "r9"]
    assert sleeper.check().problems == []


def test_points_that_nobody_looked_at_are_let_go_and_read_once_somebody_does(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_view, "UNFOLDED_BYTES", 100)
    lake.write(run_created("r1"))
    assert lake.get("run", "r1").metrics == {}
    for step in range(20):
        assert lake.get("run", "r1", points=False).attr("status") == "RUNNING"
        lake.write((), [points("r1", "loss", float(step), step=step)])
    assert lake.get("run", "r1").metrics["loss"].maximum == 19.0
    assert lake.get_many("run", ["r1"])["r1"].metrics["loss"].latest.step == 19


def test_a_look_at_more_things_than_are_kept_in_memory_finds_all(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_view, "WHOLE_KEPT", 2)
    for n in range(5):
        lake.write(run_created(f"r{n}"))
    lake.get("run", "r0")
    lake.get("run", "r1")
    assert list(lake.get_many("run", ["r0", "r2", "r1", "r3"])) == ["r0", "r2", "r1", "r3"]
    assert [run.id for run in lake.search("run", order_by=["run_id"])] == ["r0", "r1", "r2", "r3", "r4"]
    assert len(lake._view._whole) == 2


def test_a_view_that_begins_anew_keeps_what_is_only_in_journals(lake: Lake, another: Another) -> None:
    reader = another()
    lake.write(run_created("r1", who="me"))
    assert reader.get("run", "r1") is not None
    reader._view = reader._load_view()  # as after a change feed that was cleaned away
    assert reader.get("run", "r1").items("tag") == {"who": "me"}  # type: ignore[union-attr]


def test_a_long_lived_process_vacuums_while_it_works(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_TRACKING_FLUSH_SECONDS", "0.05")
    lake.write(run_created("r1"))
    lake.settle(wait=False)
    background = lake._upkeep.background
    assert background is not None
    lake._upkeep._vacuumed = time.monotonic() - timedelta(hours=1).total_seconds()
    for n in range(3):
        lake.write([tag("r1", "n", str(n))])
        lake.settle(wait=False)
        time.sleep(0.5)
    background.stop()
    assert not background.is_alive(), "the background thread waits for a lock that it holds itself"
    assert time.monotonic() - lake._upkeep._vacuumed < 60


def test_readers_of_old_versions_are_not_disturbed_by_vacuum(lake: Lake, another: Another) -> None:
    reader = another()
    for n in range(4):
        lake.write(run_created(f"r{n}"))
        lake.settle()
    before = what(reader.get("run", "r0"))
    lake.rebuild()
    lake.compact()
    lake.vacuum(keep=timedelta(0))
    assert what(reader.get("run", "r0")) == before
    assert reader.count("run") == 4
    assert {e.id for e in reader.search("run")} == {"r0", "r1", "r2", "r3"}


def test_a_process_that_only_takes_names_keeps_the_log_small_and_is_seen_in_the_tables_once_it_exits(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "COMPACT_EVERY", 8)
    for n in range(20):
        taken = [Event("registered_model", f"m{n:02}", "attr", "created", "1")]
        lake.commit(lambda taken=taken: taken)  # type: ignore[misc]
    assert len(DeltaTable(f"{lake.uri.root}/events").file_uris()) < 16
    lake.close()
    stored = DeltaTable(f"{lake.uri.root}/registered_models_latest").to_pyarrow_table(columns=["name"])
    assert sorted(stored["name"].to_pylist()) == [f"m{n:02}" for n in range(20)]
    assert lake.check().problems == []


def test_an_interruption_between_reading_a_record_and_folding_it_loses_nothing(
    lake: Lake, another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = another()
    lake.write(run_created("r1"), [points("r1", "m", 1.0)])
    with monkeypatch.context() as patch:
        patch.setattr(View, "_fold_record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reader.get("run", "r1")
    assert what(reader.get("run", "r1")) == what(lake.get("run", "r1"))
    assert reader.get("run", "r1") is not None


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_of_runs_that_end_together_the_first_settles_for_all(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    refreshes: list[int] = []
    refresh = Refresher.refresh
    monkeypatch.setattr(Refresher, "refresh", lambda self: refreshes.append(refresh(self)))
    runs = [f"r{n}" for n in range(8)]
    for run in runs:
        lake.write(run_created(run), [points(run, "loss", 0.5)])
    enders = [threading.Thread(target=lake.settle, kwargs={"of": ("run", run)}) for run in runs]
    with lake._files.leadership(wait=True):
        for ender in enders:
            ender.start()
    for ender in enders:
        ender.join()
    assert len(refreshes) == 1
    stored = DeltaTable(f"{lake.uri.root}/runs_latest").to_pyarrow_table(columns=["run_id"])
    assert sorted(stored["run_id"].to_pylist()) == runs


def test_points_that_were_flushed_and_covered_before_their_runs_creation_are_seen_with_it(lake: Lake, another: Another) -> None:
    watching, writer = another(), another()
    flusher = Flusher(lake.uri.root, journal_of(storage.of(lake.uri.root)))
    watching.get("run", "r1")
    writer.write(run_created("r1"), [points("r1", "m", 1.0, 2.0)])
    flusher._flush_log(flusher.metrics)  # as by one who had looked for events a moment before the call
    watching.get("run", "r1")
    Refresher(lake.uri.root).refresh()
    watching.get("run", "r1")
    writer._journal.own.close()
    lake.flush()
    for seen in (watching, another()):
        run = seen.get("run", "r1")
        assert run is not None and run.metrics["m"].latest.value == 2.0
    assert another().check().problems == []
