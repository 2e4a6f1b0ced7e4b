"""Journal segments: what a crash leaves behind, what a bad disk does, and who may take a segment away."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from spark_tracking.errors import LakeError
from spark_tracking.kinds.state import Event
from spark_tracking.lake import Lake
from spark_tracking.lake.flush import Flusher
from spark_tracking.lake.journal import Journal, SegmentReader
from spark_tracking.lake.journal_record import PAGE_BYTES, Record, decode, encode, unreadable
from tests.lake.making import points, run_created, tag, wait_until

Another = Callable[[], Lake]


def records(*texts: str) -> list[bytes]:
    return [encode(hlc, [tag("r", "k", text)], []) for hlc, text in enumerate(texts, 1)]


def texts(found: list[Record]) -> list[str | None]:
    return [record.events[0].value for record in found]


def segment(lake: Lake) -> Path:
    return Path(lake.uri.root) / "_journal" / f"{lake._journal.own.name}.seg"


def test_a_torn_end_is_cut_off_at_every_byte() -> None:
    whole, last = records("a", "b"), records("c" * 40)[0]
    data = b"".join(whole)
    for cut in range(len(last)):
        found = list(decode(data + last[:cut], 0))
        assert texts(found) == ["a", "b"]
        assert found[-1].end == len(data)
        assert unreadable(data + last[:cut]) == ([(len(data), cut)] if cut else [])
    assert texts(list(decode(data + last, 0))) == ["a", "b", "c" * 40]


def test_a_byte_that_changed_costs_one_record_and_is_found() -> None:
    first, second, third = records("a", "b" * 300, "c")
    data = first + second + third
    for at in range(len(first), len(first) + len(second)):
        broken = data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]
        assert texts(list(decode(broken, 0))) == ["a", "c"], f"byte {at - len(first)}"
        assert unreadable(broken) == [(len(first), len(second))]


def test_who_wants_events_alone_leaves_segments_of_points_to_a_later_look(lake: Lake) -> None:
    lake.write(run_created("r1"))
    for step in range(3):
        lake.write((), [points("r1", "m", 1.0, step=step)])
    lake.write([tag("r1", "k", "v")], [points("r1", "m", 1.0, step=3)])
    journal = Journal(Path(lake.uri.root))
    early = [record for _, record in journal.poll(points=False)]
    assert [len(record.events) > 0 for record in early] == [True, True]
    assert [bool(record.blocks) for record in early] == [False, True]
    assert journal.left_out() > 0
    assert [len(record.blocks) for _, record in journal.poll()] == [1, 1, 1]
    assert journal.left_out() == 0 and list(journal.poll()) == []


def test_who_reads_waits_for_a_record_that_is_being_written(tmp_path: Path) -> None:
    first, last = records("a" * 30, "c" * 30)
    (tmp_path / "w-0.seg").write_bytes(first)
    reader = SegmentReader(tmp_path, "w-0")
    found = []
    for cut in range(len(last) + 1):
        (tmp_path / "w-0.seg").write_bytes(first + last[:cut])
        found += list(reader.read())
    assert texts(found) == ["a" * 30, "c" * 30]
    assert list(reader.read()) == []
    reader.close()


def test_records_of_any_content_do_not_pass_for_another() -> None:
    inner = records("inner")[0]
    outer = encode(5, [Event("run", "r", "tag", "k", inner.decode("latin-1"))], [])
    assert len(list(decode(outer + outer, 0))) == 2
    assert texts(list(decode(outer[:-1] + records("x")[0], 0))) == ["x"]


def test_a_segment_with_a_changed_byte_is_kept_and_reported(lake: Lake, another: Another) -> None:
    writer = another()
    writer.write(run_created("r1"))
    lost_from = segment(writer).stat().st_size
    writer.write([tag("r1", "lost", "yes")])
    writer.write([tag("r1", "kept", "yes")])
    path = segment(writer)
    data = bytearray(path.read_bytes())
    data[lost_from + 9] ^= 0xFF
    path.write_bytes(data)
    writer.close()
    assert lake.get("run", "r1").items("tag") == {"kept": "yes"}  # type: ignore[union-attr]
    lake.flush()
    assert list(Path(lake.uri.root, "_set_aside").glob(f"*{path.name}")), "the damaged bytes are gone for good"
    problems = lake.check().problems
    assert any(path.stem in problem and str(lost_from) in problem for problem in problems), problems


def test_what_a_killed_writer_left_is_flushed_and_what_is_torn_of_it_set_aside_by_the_next(lake: Lake, another: Another) -> None:
    writer = another()
    writer.write(run_created("r1"))
    path = segment(writer)
    torn = records("torn" * 2000)[0]
    with open(path, "ab") as file:  # the kernel ends a write at a page's end
        file.write(torn[: PAGE_BYTES - path.stat().st_size])
    writer._journal.own.close()  # as the kernel does when it dies
    lake.settle()
    assert not path.exists()
    assert lake.get("run", "r1") is not None
    found = lake.check()
    assert found.problems == []
    assert any(path.stem in note and "not acknowledged" in note for note in found.notes)
    writer.close()


def test_a_writer_whose_segment_was_taken_loses_nothing(lake: Lake, another: Another, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network file system that forgot its lock."""
    writer = another()
    writer.write(run_created("r1"))
    thief = Journal(Path(lake.uri.root))
    monkeypatch.setattr(thief, "abandoned", lambda segment: True)
    flusher = Flusher(lake.uri.root, thief)
    stolen = segment(writer)
    flusher.flush()
    assert not stolen.exists()
    writer.write([tag("r1", "after", "theft")], [points("r1", "m", 1.0)])
    assert segment(writer) != stolen
    for process in (lake, writer, another()):
        assert process.get("run", "r1").items("tag") == {"after": "theft"}  # type: ignore[union-attr]
    thief.seal(writer._journal.own.name)  # sealed and not yet removed
    writer.write([tag("r1", "after", "sealing")], [points("r1", "m", 2.0, step=1)])
    flusher.flush()
    for process in (lake, writer, another()):
        assert process.get("run", "r1").items("tag") == {"after": "sealing"}  # type: ignore[union-attr]
        assert process.metric_history("r1")["metric_value"].to_pylist() == [1.0, 2.0]


def test_a_new_segment_that_somebody_takes_for_abandoned_is_no_error(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the making of a segment and its lock, another process may hold the lock for a moment."""
    really = os.open
    held: list[int] = []

    def open_and_be_overtaken(path: object, flags: int, *more: int) -> int:
        fd = really(path, flags, *more)  # type: ignore[arg-type]
        if flags & os.O_EXCL and not held:
            held.append(really(path, os.O_RDONLY))  # type: ignore[arg-type]
            fcntl.flock(held[0], fcntl.LOCK_EX)
            import threading

            threading.Timer(0.2, os.close, held).start()
        return fd

    monkeypatch.setattr(os, "open", open_and_be_overtaken)
    lake.write(run_created("r1"))
    assert held
    assert lake.get("run", "r1") is not None


def test_seals_whose_remover_was_killed_are_cleared_away(lake: Lake, another: Another) -> None:
    left = Path(lake.uri.root) / "_journal" / "0123456789-00000.sealed"
    left.touch()
    lake.write(run_created("r1"))
    lake.settle()
    assert not left.exists()


def test_a_long_segment_is_replaced_once_it_is_flushed(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_tracking.lake.upkeep.ROLL_BYTES", 10_000)
    lake.write(run_created("r1"))
    first = segment(lake)
    lake.write([tag("r1", "long", "x" * 20_000)])
    lake.settle()
    lake.write([tag("r1", "next", "y")])
    assert segment(lake) != first
    lake.settle()
    assert not first.exists()
    assert set(lake.get("run", "r1").items("tag")) == {"long", "next"}  # type: ignore[union-attr]


def test_a_big_call_is_flushed_ahead_of_time(lake_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_TRACKING_FLUSH_BYTES", "100000")
    lake = Lake.open(lake_uri, create=True)
    lake.write(run_created("r1"))
    lake.write([tag("r1", "long", "x" * 200_000)])
    wait_until(lambda: lake._names.update() and lake._names.transaction(lake._journal.own.name))
    lake.close()


def test_a_failed_append_is_an_error_and_the_next_call_goes_on_elsewhere(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.write(run_created("r1"))
    torn = segment(lake)
    really = os.write

    def half(fd: int, data: bytes) -> int:
        return really(fd, data[: len(data) // 2])

    with monkeypatch.context() as full:
        full.setattr(os, "write", half)
        with pytest.raises(LakeError, match="No space is left"):
            lake.write([tag("r1", "k", "not stored")])
    lake.write([tag("r1", "l", "stored")])
    assert segment(lake) != torn
    assert lake.get("run", "r1").items("tag") == {"l": "stored"}  # type: ignore[union-attr]
    lake.settle()
    assert not torn.exists()
    assert lake.check().problems == []
