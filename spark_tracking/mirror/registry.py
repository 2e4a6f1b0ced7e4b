"""Registered models and their versions, from any source into a lake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spark_tracking.kinds.catalog import MODEL_VERSION, REGISTERED_MODEL
from spark_tracking.kinds.shapes import Registers
from spark_tracking.lake import Entity, Event, Lake
from spark_tracking.mirror.bookmarks import Bookmark, Bookmarks
from spark_tracking.mirror.registers import OWNER, Row, changes, marks, split_marks
from spark_tracking.mirror.result import SyncResult, Wanted
from spark_tracking.mirror.source import Source

MODEL, VERSION = "registered_model", "model_version"
TABLES = {MODEL: "registered_models_latest", VERSION: "model_versions_latest"}
Expect = Callable[[str, str, int], None]
"""Takes a kind, its table and how many rows are listed; raises where that cannot be."""
ORIGIN = ("sync", "id")
LOCK = "spark-tracking sync "
"""How the registered models begin by which syncs into a server exclude each other."""


class Registry:
    """One sync of a registry. Names are unique in a lake, so all changes go in as one conditional commit."""

    def __init__(self, lake: Lake | None, source: Source, marks: Bookmarks, wanted: Wanted, result: SyncResult, expect: Expect) -> None:
        self._lake = lake
        self._source = source
        self._marks = marks
        self._wanted = wanted
        self._result = result
        self._expect = expect
        self._names: dict[str, str] = {}
        self._bases: dict[tuple[str, str], bytes] = {}
        self._new: set[str] = set()

    def sync(self) -> None:
        """Do it."""
        models, versions = listings(self._source, self._wanted, self._expect)
        events: list[Event] = []

        def decide() -> list[Event]:
            events[:] = self._decide(models, versions)
            return [] if self._wanted.dry_run else events

        if self._lake is None:
            decide()
        else:
            self._lake.commit(decide)
        self._count(MODEL, len(models), events)
        self._count(VERSION, len(versions), events)
        for (kind, id), base in self._bases.items():
            marked = self._marks.get(kind, id)
            if marked is None or marked.base != base:
                self._marks.put(kind, id, Bookmark(b"-", None, base))
        for event in events:
            if event.field == "purge":
                self._marks.drop(event.kind, event.id)

    def _decide(self, models: list[Row], versions: list[Row]) -> list[Event]:
        there = {} if self._lake is None else {e.id: e for e in self._lake.search(MODEL)}
        mine = {e.items("sync").get("id", e.id): e.id for e in there.values() if e.items("sync").get("source") == self._source.id}
        self._names, self._new, self._bases = {}, set(), {}
        latest: dict[str, int] = {}
        for row in versions:
            latest[row["name"]] = max(latest.get(row["name"], 0), row["version"])
        events: list[Event] = []
        for row in models:
            taken = {*there, *self._names.values()}
            name = mine.get(row["name"]) or next(name for name in self._source.names(row["name"]) if name not in taken)
            self._names[row["name"]] = name
            own = {OWNER: self._source.id, ORIGIN: row["name"]}
            registers: Registers = {**REGISTERED_MODEL.registers(row), **own}
            known = there.get(name)
            number = latest.get(row["name"], 0)
            if known is None or (known.number("last_version") or 0) < number:
                registers["attr", "last_version"] = str(number) if number else None
            events += self._changes(MODEL, row["name"], name, registers, known)
        ids = [self._version_id(row) for row in versions]
        known_versions = {} if self._lake is None else self._lake.get_many(VERSION, ids)
        for row, id in zip(versions, ids):
            registers = {**self._resolved(row), OWNER: self._source.id}
            events += self._changes(VERSION, f"{row['name']}/{row['version']}", id, registers, known_versions.get(id))
        return events + self._gone({row["name"] for row in models}, {f"{row['name']}/{row['version']}" for row in versions}, mine)

    def _changes(self, kind: str, origin: str, id: str, registers: Registers, known: Entity | None) -> list[Event]:
        marked = self._marks.get(kind, origin)
        if known is None:
            if marked is not None:
                return []  # deleted in the lake, which stands
            self._new.add(f"{kind}:{id}")
        self._bases[kind, origin] = marks({key: value for key, value in registers.items() if key != ("attr", "last_version")})
        return list(changes(kind, id, registers, known, split_marks(marked.base if marked else None)))

    def _gone(self, models: set[str], versions: set[str], mine: dict[str, str]) -> list[Event]:
        """What was copied before and the source has no more. A registry has no trash, so it goes here, too."""
        if self._wanted.models != "all" or self._source.refused(*TABLES.values()):  # what is refused is not gone
            return []
        events = []
        for name in self._marks.ids(MODEL) - models:
            if name in mine:
                events.append(Event(MODEL, mine[name], "purge", "", None))
        for origin in self._marks.ids(VERSION) - versions:
            name, _, number = origin.rpartition("/")
            if name in mine:
                events.append(Event(VERSION, f"{mine[name]}/{number}", "purge", "", None))
        return events

    def _resolved(self, row: Row) -> Registers:
        """A version's registers, its files found where the lake has them."""
        registers = MODEL_VERSION.registers(row)
        source: str = row["source"] or ""
        registers["attr", "storage_location"] = self._source.reader.artifact_uri(row["storage_location"])
        if self._wanted.artifacts == "copy" and self._lake is not None:
            kind, _, rest = source.partition(":/")
            id, _, path = rest.lstrip("/").partition("/")
            home = self._lake.get({"runs": "run", "models": "logged_model"}[kind], id, points=False) if kind in ("runs", "models") else None
            if home is not None:
                registers["attr", "storage_location"] = f"{home.attr('artifact_uri')}/{path}".rstrip("/")
        return registers

    def _version_id(self, row: Row) -> str:
        return f"{self._names.get(row['name'], row['name'])}/{row['version']}"

    def _count(self, kind: str, seen: int, events: list[Event]) -> None:
        tally = self._result.things[kind]
        written = [event for event in events if event.kind == kind]
        new = {id.partition(":")[2] for id in self._new if id.startswith(f"{kind}:")}
        tally.seen, tally.new, tally.written = seen, len(new), len(written)
        tally.changed = len({event.id for event in written} - new)


def listings(source: Source, wanted: Wanted, expect: Expect) -> tuple[list[Row], list[Row]]:
    """Both listings of a source, of which something may be removed, so that both must be believed.

    Raises:
        Unavailable: one of them lacks most of what it had.
    """
    found = [listed(source, wanted, table) for table in TABLES.values()]
    for (kind, table), rows in zip(TABLES.items(), found):
        expect(kind, table, len(rows))
    return found[0], found[1]


def listed(source: Source, wanted: Wanted, table: str) -> list[Row]:
    """The registered models or versions that are wanted, prompts among them, which MLflow's searches leave out unless asked."""
    found: dict[tuple[Any, ...], Row] = {}
    for filter in (None, "tags.`mlflow.prompt.is_prompt` = 'true'"):
        for batch in source.rows(table, filter=filter):
            for row in batch.to_pylist():
                if (wanted.models == "all" or row["name"] in wanted.models) and not row["name"].startswith(LOCK):
                    found[row["name"], row.get("version")] = row
    return list(found.values())
