"""What has a name that is unique in a lake: experiments, and registered models with their versions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from spark_tracking.kinds.catalog import EXPERIMENT, MODEL_VERSION, REGISTERED_MODEL
from spark_tracking.kinds.shapes import Registers, split_version_id, version_id
from spark_tracking.lake import Entity, Event, Lake
from spark_tracking.mirror.bookmarks import Bookmarks
from spark_tracking.mirror.changes import OWNER, changes, seen
from spark_tracking.mirror.copying import Done
from spark_tracking.mirror.source import Source
from spark_tracking.readers.reader import Row

ORIGIN = ("sync", "id")
"""The register that says which experiment, or registered model, of its source a lake's is."""


class LakeNames:
    """The names of one source in one lake: its own where they are free, others where they are not.

    The decisions are functions for `Lake.commit`: they may run again, and the last one counts.

    Attributes:
        events: what was decided.
        done: what that does, by kind and the source's id.
        ids: the lake's ids of experiments by the source's.
    """

    def __init__(self, lake: Lake | None, source: Source, marks: Bookmarks) -> None:
        self._lake = lake
        self._source = source
        self._marks = marks
        self._begin()
        self.ids: dict[str, str] = {}

    def _begin(self) -> None:
        self.events: list[Event] = []
        self.done: list[tuple[str, str, Done]] = []

    def _there(self, kind: str) -> tuple[dict[str, Entity], dict[str, str]]:
        """The lake's things by id, and the ids of those that came from this source by the source's."""
        there = {} if self._lake is None else {e.id: e for e in self._lake.search(kind)}
        mine = {e.items("sync").get("id", e.id): e.id for e in there.values() if e.items("sync").get("source") == self._source.id}
        return there, mine

    def _decide(self, kind: str, origin: str, id: str, registers: Registers, known: Entity | None, is_new: bool) -> None:
        """Let a thing follow its source."""
        events = list(changes(kind, id, registers, known, self._marks.get(kind, origin)))
        self.events += events
        noted = seen({key: value for key, value in registers.items() if key != ("attr", "last_version")})
        self.done.append((kind, origin, Done(noted, is_new, len(events))))

    def _decide_unless_gone(self, kind: str, origin: str, id: str, registers: Registers, known: Entity | None) -> None:
        """The same in a registry: what is not in the lake, but was copied once, was deleted there, which stands."""
        if known is not None or self._marks.get(kind, origin) is None:
            self._decide(kind, origin, id, registers, known, known is None)

    # -- experiments --------------------------------------------------------------------------------------------

    def experiments(self, rows: Sequence[Row]) -> list[Event]:
        """The events that bring the lake's experiments up to rows of `experiments_latest`."""
        self._begin()
        there, self.ids = self._there(EXPERIMENT.name)
        names = {e.attr("name"): e.id for e in there.values()}
        zero = there.get("0")
        given = 0 if zero is None else zero.number("last_id") or 0
        # Ids that can stay are given away first, so that a new number never takes one of them.
        wanted = {row["experiment_id"] for row in rows if row["experiment_id"].isdigit()}
        last = max([given, *(int(id) for id in there if id.isdigit()), *(int(id) for id in wanted if len(id) < 10)])
        for row in rows:
            origin = row["experiment_id"]
            known_as = self.ids.get(origin)
            id = known_as or self._free_id(row, there)
            if id is None:
                last += 1
                id = str(last)
            self.ids[origin] = id
            name = next(name for name in self._source.names(row["name"]) if names.get(name, id) == id)
            names[name] = id
            known = there.get(id)
            self._decide(EXPERIMENT.name, origin, id, self._experiment(row, id, name, known), known, known_as is None)
            there.setdefault(id, Entity(EXPERIMENT.name, id))
        if self.events and zero is not None and last > given:
            self.events.append(Event(EXPERIMENT.name, "0", "attr", "last_id", str(last)))  # no change of the source's
        return self.events

    def _experiment(self, row: Row, id: str, name: str, there: Entity | None) -> Registers:
        location = there.attr("artifact_location") if there is not None else None
        root = "" if self._lake is None else self._lake.uri.artifact_root
        own = {("attr", "name"): name, ("attr", "artifact_location"): location or f"{root}/{id}"}
        return {**EXPERIMENT.registers(row), **own, OWNER: self._source.id, ORIGIN: row["experiment_id"]}

    def _free_id(self, row: Row, there: Mapping[str, Entity]) -> str | None:
        id: str = row["experiment_id"]
        if id not in there:
            return id if id.isdigit() else None
        names = {row["name"], there[id].attr("name")}
        untouched = id == "0" and names == {"Default"} and "source" not in there[id].items("sync")
        if untouched and self._lake is not None and not self._lake.count("run", "experiment_id = '0'"):
            return id  # the experiment that every backend has from the start, and nobody used
        return None

    # -- the registry -------------------------------------------------------------------------------------------

    def registry(
        self,
        models: Mapping[str, Row],
        versions: Mapping[str, Row],
        gone: Callable[[str, Iterable[str]], set[str]],
        home: Callable[[str], str | None],
    ) -> list[Event]:
        """The events that bring registered models and versions up to their rows.

        `gone` tells what of a kind was copied before and is not among those left, `home` where the files of a version's source are.
        """
        self._begin()
        there, mine = self._there(REGISTERED_MODEL.name)
        names: dict[str, str] = {}
        latest: dict[str, int] = {}
        for row in versions.values():
            latest[row["name"]] = max(latest.get(row["name"], 0), row["version"])
        for origin, row in models.items():
            taken = {*there, *names.values()}
            name = names[origin] = mine.get(origin) or next(name for name in self._source.names(origin) if name not in taken)
            registers: Registers = {**REGISTERED_MODEL.registers(row), OWNER: self._source.id, ORIGIN: origin}
            known, number = there.get(name), latest.get(origin, 0)
            if known is None or (known.number("last_version") or 0) < number:
                registers["attr", "last_version"] = str(number) if number else None
            self._decide_unless_gone(REGISTERED_MODEL.name, origin, name, registers, known)
        ids = {origin: version_id(str(names.get(row["name"], row["name"])), row["version"]) for origin, row in versions.items()}
        known_versions = {} if self._lake is None else self._lake.get_many(MODEL_VERSION.name, list(ids.values()))
        for origin, row in versions.items():
            location = home(row["source"] or "") or self._source.reader.artifact_uri(row["storage_location"])
            registers = {**MODEL_VERSION.registers(row), ("attr", "storage_location"): location, OWNER: self._source.id}
            self._decide_unless_gone(MODEL_VERSION.name, origin, ids[origin], registers, known_versions.get(ids[origin]))
        # A registry has no trash, so what is gone at the source goes here, too.
        for name in gone(REGISTERED_MODEL.name, models) & mine.keys():
            self.events.append(Event(REGISTERED_MODEL.name, mine[name], "purge", "", None))
        for origin in gone(MODEL_VERSION.name, versions):
            name, version = split_version_id(origin)
            if name in mine:
                self.events.append(Event(MODEL_VERSION.name, version_id(mine[name], version), "purge", "", None))
        return self.events
