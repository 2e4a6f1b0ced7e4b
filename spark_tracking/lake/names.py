"""Commits that take or free a unique name or number: past the journals, one after the other, in conflict only with each other."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow.compute as pc

from spark_tracking import config
from spark_tracking.kinds.state import Event
from spark_tracking.lake import maintain
from spark_tracking.lake.columns import event_rows
from spark_tracking.lake.log import NAMES, Raced, Table, transaction
from spark_tracking.lake.record import Record, last_of_each
from spark_tracking.lake.tables import EVENTS_LOG


class Names(Table):
    """The events log, as who takes names follows it."""

    def __init__(self, root: str) -> None:
        super().__init__(root, EVENTS_LOG)

    def number(self) -> int:
        """How many commits have taken or freed names so far."""
        self.update()
        return self.transaction(NAMES) or 0

    def knows(self, kind: str, id: str) -> bool:
        """Whether anything of a thing stands in the log."""
        return bool(self.select((pc.field("kind") == kind) & (pc.field("id") == id), ["hlc"]).num_rows)

    def commit(self, number: int, events: Sequence[Event], hlc: int, writer: str) -> bool:
        """Commit events as the one after `number`; False when another process was first."""
        before = self.version()
        rows = event_rows([(writer, Record(hlc, 0, last_of_each(events), []))])
        try:
            self.append(rows, [transaction(NAMES, number + 1)])
        except Raced:
            if not self._is_in(number, hlc, writer):
                return False
        if config.DURABLE.get():
            self.sync_to_disk(before)
        if self.version() % maintain.COMPACT_EVERY == 0:
            maintain.compact(self)
        return True

    def _is_in(self, number: int, hlc: int, writer: str) -> bool:
        """Whether the commit that was reported as lost is in after all."""
        before = self.version()
        if self.number() != number + 1:
            return False
        rows = self.rows_since(before)
        return bool(pc.any(pc.and_(pc.equal(rows["hlc"], hlc), pc.equal(rows["writer"], writer))).as_py())
