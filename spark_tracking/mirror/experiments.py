"""Which experiment of a lake an experiment of a source is: its own id and name where they are free, others where they are not."""

from __future__ import annotations

from collections.abc import Sequence

from spark_tracking.kinds.catalog import EXPERIMENT
from spark_tracking.kinds.shapes import Registers
from spark_tracking.lake import Entity, Event, Lake
from spark_tracking.mirror.registers import OWNER, Row, changes, marks, split_marks
from spark_tracking.mirror.source import Source

ORIGIN = ("sync", "id")
"""The register that says which experiment of its source a lake's experiment is."""


class Experiments:
    """The experiments of one source in one lake.

    Attributes:
        ids: the lake's id by the source's.
        bases: the marks that this sync leaves, by the source's id.
    """

    def __init__(self, lake: Lake | None, source: Source) -> None:
        self._lake = lake
        self._from = source
        self._source = source.id
        self.ids: dict[str, str] = {}
        self.bases: dict[str, bytes] = {}
        self.new: set[str] = set()

    def decide(self, rows: Sequence[Row], bases: dict[str, bytes]) -> list[Event]:
        """The events that bring the lake's experiments up to the source's; a function for `Lake.commit`, it may run again.

        Args:
            rows: of `experiments_latest`.
            bases: the marks of the last sync, by the source's id.
        """
        there = {} if self._lake is None else {e.id: e for e in self._lake.search("experiment")}
        self.ids = {e.items("sync")["id"]: e.id for e in there.values() if e.items("sync").get("source") == self._source}
        self.new = {row["experiment_id"] for row in rows} - self.ids.keys()
        names = {e.attr("name"): e.id for e in there.values()}
        last = max((int(id) for id in there if id.isdigit()), default=0)
        zero = there.get("0")
        last = max(last, (zero.number("last_id") or 0) if zero else 0)
        # Ids that can stay are given away first, so that a new number never takes one of them.
        wanted = {row["experiment_id"] for row in rows if row["experiment_id"].isdigit()}
        last = max([last, *(int(id) for id in wanted if len(id) < 10)])
        events: list[Event] = []
        for row in rows:
            origin = row["experiment_id"]
            id = self.ids.get(origin) or self._free_id(row, there)
            if id is None:
                last += 1
                id = str(last)
            self.ids[origin] = id
            name = next(name for name in self._from.names(row["name"]) if names.get(name, id) == id)
            names[name] = id
            registers = self._registers(row, id, name, there.get(id))
            self.bases[origin] = marks(registers)
            events += changes("experiment", id, registers, there.get(id), split_marks(bases.get(origin)))
            there.setdefault(id, Entity("experiment", id))
        if events and zero is not None and last > (zero.number("last_id") or 0):
            events.append(Event("experiment", "0", "attr", "last_id", str(last)))
        return events

    def _registers(self, row: Row, id: str, name: str, there: Entity | None) -> Registers:
        location = there.attr("artifact_location") if there is not None else None
        root = "" if self._lake is None else self._lake.uri.artifact_root
        own = {("attr", "name"): name, ("attr", "artifact_location"): location or f"{root}/{id}"}
        return {**EXPERIMENT.registers(row), **own, OWNER: self._source, ORIGIN: row["experiment_id"]}

    def _free_id(self, row: Row, there: dict[str, Entity]) -> str | None:
        id: str = row["experiment_id"]
        if id not in there:
            return id if id.isdigit() else None
        names = {row["name"], there[id].attr("name")}
        untouched = id == "0" and names == {"Default"} and "source" not in there[id].items("sync")
        if untouched and self._lake is not None and not self._lake.count("run", "experiment_id = '0'"):
            return id  # the experiment that every backend has from the start, and nobody used
        return None
