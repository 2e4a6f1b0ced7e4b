"""Journal -> logs. One process at a time does it for all; correctness never depends on which, or on there being only one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import orjson
import pyarrow as pa

from spark_tracking.delta import storage
from spark_tracking.delta.table import Raced, Table
from spark_tracking.errors import Unavailable
from spark_tracking.lake.journal import POINTS, Piece, writer_of
from spark_tracking.lake.journal_record import Record, decode, unreadable
from spark_tracking.lake.journals import AnyJournal
from spark_tracking.lake.log_rows import event_rows, metric_rows
from spark_tracking.lake.tables import EVENTS_LOG, METRICS_LOG

ATTEMPTS = 50
DURABLE = "_journal/durable.json"
"""Up to which version each log is known to be on disk; merely saves work, and may be lost."""


class Flusher:
    """Moves what journals hold into the logs, with handles of its own.

    Each commit carries, for every segment it took rows from, the position behind them. Positions are read from the very
    handle that commits, so a record cannot get in twice.
    """

    def __init__(self, root: str, journal: AnyJournal) -> None:
        self._journal = journal
        self.events = Table(root, EVENTS_LOG)
        self.metrics = Table(root, METRICS_LOG)
        self._files = storage.of(root)
        self._retired: dict[Table, list[str]] = {self.events: [], self.metrics: []}

    def flush(self, own: str = "") -> bool:
        """Flush all journals as they are now, and remove what nobody adds to any more; returns whether anything was committed.

        Args:
            own: a segment that this process has let go of.
        """
        ended = self._journal.ended(own)
        moved = self._flush_log(self.events)
        moved = self._flush_log(self.metrics) or moved
        if ended:
            self._remove(ended)
        return moved

    def _remove(self, ended: Sequence[Piece]) -> None:
        self._make_durable()
        flushed: list[Piece] = []
        unsound: list[Piece] = []
        for piece in ended:
            content = self._journal.content(piece)
            if content is not None and self._flushed(piece, content):
                (unsound if unreadable(content) else flushed).append(piece)
        self._journal.remove(flushed)
        for piece in unsound:  # what is in them may have been acknowledged: `lake check` tells of it
            self._journal.set_aside(piece)
        for log, retired in self._retired.items():
            retired += [piece.segment for piece in flushed + unsound if piece.last and log.transaction(piece.segment) is not None]

    def _make_durable(self) -> None:
        """See that all commits are on disk, also those of others: they may have been killed before they saw to it."""
        durable: dict[str, int] = {}
        if self._files.is_local and self._files.exists(DURABLE):
            with suppress(orjson.JSONDecodeError):  # torn by a crash: see to all of them again
                durable = orjson.loads(self._files.read(DURABLE))
        for log in (self.events, self.metrics):
            log.update()
            log.sync_to_disk(durable.get(log.spec.name, -1))
            durable[log.spec.name] = log.version()
        if self._files.is_local:
            self._files.note(DURABLE, orjson.dumps(durable))

    def _flushed(self, piece: Piece, content: bytes) -> bool:
        records = list(decode(content, piece.start))
        ends = {
            self.events: max((r.end for r in records if r.events), default=0),
            self.metrics: max((r.end for r in records if r.blocks), default=0),
        }
        return all(not end or (log.transaction(piece.segment) or 0) >= end for log, end in ends.items())

    def _flush_log(self, log: Table) -> bool:
        for _ in range(ATTEMPTS):
            log.update()
            taken = self._unflushed(log)
            if not taken:
                return False
            pairs = [(writer_of(segment), record) for segment, records in taken.items() for record in records]
            rows: pa.Table = event_rows(pairs) if log is self.events else metric_rows(pairs)
            ends = {segment: records[-1].end for segment, records in taken.items()}
            try:
                log.append(rows, ends, {segment: log.transaction(segment) or 0 for segment in self._retired[log]})
            except Raced:
                continue
            self._retired[log].clear()
            if log.is_due():
                log.compact()
            return True
        raise Unavailable(f"Other processes flushed '{log.spec.name}' first {ATTEMPTS} times in a row; try again later.")

    def _unflushed(self, log: Table) -> dict[str, list[Record]]:
        """The records of each segment that `log` lacks, as of the version that the handle has.

        A segment that is gone was flushed whole by somebody else after that version: a handle that old must not commit
        it again. The look at the segments, which comes after, tells.
        """
        taken = {}
        for segment in self._journal.segments():
            if log is self.events and segment.endswith(POINTS):
                continue
            position = log.transaction(segment) or 0
            if self._journal.size(segment) <= position:
                continue
            records = self._journal.read(segment, position)
            mine = [r for r in records or () if (r.events if log is self.events else r.blocks)]
            if mine:
                taken[segment] = mine
        return taken
