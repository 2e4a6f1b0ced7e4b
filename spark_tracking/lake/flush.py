"""Journal -> logs. One process at a time does it for all; correctness never depends on which, or on there being only one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from spark_tracking.lake.columns import event_rows, metric_rows
from spark_tracking.lake.journal import Journal, writer_of
from spark_tracking.lake.log import Raced, Table, transaction
from spark_tracking.lake.maintain import COMPACT_EVERY, compact
from spark_tracking.lake.record import Record
from spark_tracking.lake.tables import EVENTS_LOG, METRICS_LOG

ATTEMPTS = 50


@contextmanager
def leadership(root: Path, wait: bool) -> Iterator[bool]:
    """Hold the lake's flush lock; yields whether it was got. The kernel frees it when the process dies."""
    fd = os.open(root / "_journal" / "flush.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(fd)
        yield False
        return
    try:
        yield True
    finally:
        os.close(fd)


class Flusher:
    """Moves what journals hold into the logs, with handles of its own.

    Each commit carries, for every segment it took rows from, the position behind them. Positions are read from the very
    handle that commits, so a record cannot get in twice.
    """

    def __init__(self, root: str, journal: Journal) -> None:
        self._journal = journal
        self.events = Table(root, EVENTS_LOG)
        self.metrics = Table(root, METRICS_LOG)
        # others' commits count as not on disk, too: they may have been killed before they saw to it
        self._durable = {self.events: -1, self.metrics: -1}
        self._retired: dict[Table, list[str]] = {self.events: [], self.metrics: []}

    def flush(self) -> bool:
        """Flush all journals as they are now; returns whether anything was committed."""
        segments = self._journal.segments()
        moved = self._flush_log(self.events, segments)
        return self._flush_log(self.metrics, segments) or moved

    def reap(self, own: str = "") -> None:
        """Flush and remove the segments of dead writers, and `own`, which this process has let go of."""
        dead = [s for s in self._journal.segments() if s == own or self._journal.abandoned(s)]
        if not dead:
            return
        for segment in dead:
            self._journal.seal(segment)
        self.flush()
        for log, durable in self._durable.items():
            log.update()
            log.sync_to_disk(durable)
            self._durable[log] = log.version()
        for segment in dead:
            if self._flushed(segment):
                self._journal.remove(segment)
                for log, retired in self._retired.items():
                    if log.transaction(segment) is not None:
                        retired.append(segment)

    def _flushed(self, segment: str) -> bool:
        records = self._journal.read(segment, 0)
        if records is None or self._journal.corrupt(segment):
            return False  # a damaged segment stays for `lake check` to tell of
        ends = {
            self.events: max((r.end for r in records if r.events), default=0),
            self.metrics: max((r.end for r in records if r.blocks), default=0),
        }
        return all((log.transaction(segment) or 0) >= end for log, end in ends.items())

    def _flush_log(self, log: Table, segments: Sequence[str]) -> bool:
        for _ in range(ATTEMPTS):
            log.update()
            taken = self._unflushed(log, segments)
            if not taken:
                return False
            pairs = [(writer_of(segment), record) for segment, records in taken.items() for record in records]
            rows: pa.Table = event_rows(pairs) if log is self.events else metric_rows(pairs)
            ends = [transaction(segment, records[-1].end) for segment, records in taken.items()]
            retired = [transaction(s, log.transaction(s) or 0, retired=True) for s in self._retired[log]]
            try:
                log.append(rows, ends + retired)
            except Raced:
                continue
            self._retired[log].clear()
            if log.version() % COMPACT_EVERY == 0:
                compact(log)
            return True
        raise Raced(f"'{log.spec.name}' was committed to by others {ATTEMPTS} times in a row")

    def _unflushed(self, log: Table, segments: Sequence[str]) -> dict[str, list[Record]]:
        """The records of each segment that `log` lacks, as of the version that the handle has.

        A segment that is gone was flushed whole by somebody else after that version: a handle that old must not commit
        it again, and the read, which comes after, tells.
        """
        taken = {}
        for segment in segments:
            position = log.transaction(segment) or 0
            if self._journal.size(segment) <= position:
                continue
            records = self._journal.read(segment, position)
            mine = [r for r in records or () if (r.events if log is self.events else r.blocks)]
            if mine:
                taken[segment] = mine
        return taken
