"""Commits that take or free a unique name or number: past the journals, one after the other, in conflict only with each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pyarrow.compute as pc
from mlflow.utils.uri import append_to_uri_path

from spark_tracking import config
from spark_tracking.delta.table import Raced, Table
from spark_tracking.errors import LakeError
from spark_tracking.kinds.state import Event
from spark_tracking.lake.journal_record import Record, last_of_each
from spark_tracking.lake.log_rows import event_rows
from spark_tracking.lake.tables import EVENTS_LOG

NAMES = "names"
"""The application transaction that all commits which take or free a unique name contend for."""
_ATTEMPTS = 200


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
            self.append(rows, {NAMES: number + 1})
        except Raced:
            if not self._is_in(number, hlc, writer):
                return False
        if config.DURABLE.get():
            self.sync_to_disk(before)
        if self.is_due():
            self.compact()
        return True

    def _is_in(self, number: int, hlc: int, writer: str) -> bool:
        """Whether the commit that was reported as lost is in after all."""
        before = self.version()
        if self.number() != number + 1:
            return False
        rows = self.rows_since(before)
        return bool(pc.any(pc.and_(pc.equal(rows["hlc"], hlc), pc.equal(rows["writer"], writer))).as_py())


def insist(attempt: Callable[[], bool]) -> None:
    """Try to take or free names until it was done. Raises LakeError: others were first, time and again."""
    for number in range(_ATTEMPTS):
        if attempt():
            return
        time.sleep(min(0.001 * 2 ** min(number, 6), 0.05))
    raise LakeError(f"Other processes changed names {_ATTEMPTS} times in a row; try again later.")


def first_experiment(artifact_root: str, born: int) -> list[Event]:
    """What every MLflow backend has from the start: the experiment 'Default' with the id 0."""
    values = {"created": str(born), "updated": str(born), "name": "Default", "lifecycle_stage": "active", "last_id": "0"}
    values["artifact_location"] = append_to_uri_path(artifact_root, "0")
    return [Event("experiment", "0", "attr", key, value) for key, value in values.items()]
