"""Registered models and their versions, from any source into a server's registry, by the numbers that they have at the source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spark_tracking.errors import InvalidState, SparkTrackingError
from spark_tracking.kinds.catalog import MODEL_VERSION, REGISTERED_MODEL
from spark_tracking.kinds.shapes import Registers
from spark_tracking.kinds.state import Entity
from spark_tracking.lake import Event
from spark_tracking.mirror.bookmarks import Bookmark, Bookmarks
from spark_tracking.mirror.copying import base_of
from spark_tracking.mirror.registers import Row, changes, entity, marks, split_marks
from spark_tracking.mirror.registry import MODEL, TABLES, VERSION, Expect, listed, listings
from spark_tracking.mirror.result import SyncResult, Wanted
from spark_tracking.mirror.server import ORIGIN, Server, pairs
from spark_tracking.mirror.source import Source

_PASSED = "The target's '{}' has passed version {}, which was deleted there; numbers do not come back."
_SCHEMES = {"runs": "run", "models": "logged_model"}


class ServerRegistry:
    """One sync of a registry into a server.

    Args:
        copy_of: the target's id of a run or logged model; None where it has none.
    """

    def __init__(
        self,
        server: Server,
        source: Source,
        marks: Bookmarks,
        wanted: Wanted,
        result: SyncResult,
        copy_of: Callable[[str, str], str | None],
        expect: Expect,
    ) -> None:
        self._server = server
        self._source = source
        self._marks = marks
        self._wanted = wanted
        self._result = result
        self._copy_of = copy_of
        self._expect = expect

    def sync(self) -> None:
        """Do it."""
        rows, versions = listings(self._source, self._wanted, self._expect)
        models = {row["name"]: row for row in rows}
        there = {row["name"]: row for row in listed(self._server.source, Wanted(), TABLES[MODEL])}
        known = listed(self._server.source, Wanted(), TABLES[VERSION])
        mine = {dict(row["tags"] or ()).get(ORIGIN): name for name, row in there.items()}
        self._result.things[MODEL].seen, self._result.things[VERSION].seen = len(models), len(versions)
        for name, row in models.items():
            own = sorted((v for v in versions if v["name"] == name), key=lambda v: int(v["version"]))
            copy = mine.get(self._origin(name))
            try:
                copy = self._copy_model(row, there.get(copy or ""), there)
                if copy is None:
                    continue
                numbers = {int(v["version"]): v for v in known if v["name"] == copy}
                done = [self._tried(v, copy, numbers) for v in own]
                if all(done):
                    self._give_aliases(row, copy, there.get(copy))
            except SparkTrackingError as error:
                self._result.fail(MODEL, name, error)
        if self._wanted.models == "all" and not self._source.refused(*TABLES.values()):  # what is refused is not gone
            self._remove_gone(set(models), {f"{v['name']}/{v['version']}" for v in versions}, mine)

    def _origin(self, id: str) -> str:
        return f"{self._source.id}/{id}"

    def _copy_model(self, row: Row, copy: Row | None, there: dict[str, Row]) -> str | None:
        """The name of the copy of a model, made or changed; None where it was deleted on the target, which stands."""
        name, tally = row["name"], self._result.things[MODEL]
        marked = self._marks.get(MODEL, name)
        if copy is None and marked is not None:
            return None
        wanted = {k: v for k, v in REGISTERED_MODEL.registers(row).items() if k[0] == "tag" or k == ("attr", "description")}
        wanted["tag", ORIGIN] = self._origin(name)
        if copy is None:
            tally.new += 1
            called = next(n for n in self._source.names(name) if n not in there)
            body = {"name": called, "description": row["description"] or "", "tags": pairs(_tags(wanted))}
            if not self._wanted.dry_run:
                self._server.create("registered-models/create", body, lambda: self._created(called, name))
            tally.written += len(wanted)
        else:
            called = str(copy["name"])
            events = list(changes(MODEL, called, wanted, entity(MODEL, called, copy), split_marks(base_of(marked))))
            tally.changed += bool(events)
            self._apply(events, tally, "registered-models", {"name": called})
        self._marks.put(MODEL, name, Bookmark(b"-", None, marks(wanted)))
        return called

    def _created(self, name: str, origin: str) -> Any:
        found = listed(self._server.source, Wanted(models=(name,)), "registered_models_latest")
        return found[0] if found and dict(found[0]["tags"] or ()).get(ORIGIN) == self._origin(origin) else None

    def _apply(self, events: list[Event], tally: Any, path: str, key: dict[str, Any]) -> None:
        tally.written += len(events)
        for event in [] if self._wanted.dry_run else events:
            if event.field == "tag" and event.value is not None:
                self._server.send(f"{path}/set-tag", {**key, "key": event.key, "value": event.value})
            elif event.field == "tag":
                self._server.send(f"{path}/delete-tag", {**key, "key": event.key}, "DELETE")
            elif event.field == "alias" and event.value is not None:
                self._server.send("registered-models/alias", {**key, "alias": event.key, "version": event.value})
            elif event.field == "alias":
                self._server.send("registered-models/alias", {**key, "alias": event.key}, "DELETE")
            elif event.key == "description":
                self._server.send(f"{path}/update", {**key, "description": event.value or ""}, "PATCH")
            elif event.key == "current_stage":
                self._server.send(f"{path}/transition-stage", {**key, "stage": event.value, "archive_existing_versions": False})

    # -- versions -----------------------------------------------------------------------------------------------

    def _tried(self, row: Row, name: str, there: dict[int, Row]) -> bool:
        try:
            self._copy_version(row, name, there)
        except SparkTrackingError as error:
            self._result.fail(VERSION, f"{row['name']}/{row['version']}", error)
            return False
        return True

    def _copy_version(self, row: Row, name: str, there: dict[int, Row]) -> None:
        number, tally = int(row["version"]), self._result.things[VERSION]
        id = f"{row['name']}/{number}"
        marked, copy = self._marks.get(VERSION, id), there.get(number)
        origin = None if copy is None else dict(copy["tags"] or ()).get(ORIGIN)
        if copy is not None and origin != self._origin(id):
            if not (origin or "").startswith(self._origin(row["name"] + "/")):
                raise InvalidState(f"Version {number} of '{name}' on the target was made there; it stays as it is.")
            if not self._wanted.dry_run:
                self._delete(name, number)  # a stand-in that a killed sync left
            copy = None
        if copy is None and marked is not None:
            return  # deleted on the target, which stands
        told = ("description", "current_stage")
        wanted = {k: v for k, v in MODEL_VERSION.registers(row).items() if k[0] == "tag" or k[1] in told}
        wanted["tag", ORIGIN] = self._origin(id)
        if copy is None:
            self._translated(row)  # raises before it counts, also where nothing is to be written
            if max(there, default=0) > number:
                raise InvalidState(_PASSED.format(name, number))
            if not self._wanted.dry_run:
                copy = self._create_version(row, name, wanted)
            tally.new += 1
            tally.written += len(wanted)
            if copy is None:
                return
        else:
            tally.changed += any(changes(VERSION, id, wanted, entity(VERSION, id, copy), split_marks(base_of(marked))))
        events = list(changes(VERSION, id, wanted, entity(VERSION, id, copy), split_marks(base_of(marked))))
        self._apply(events, tally, "model-versions", {"name": name, "version": str(number)})
        self._marks.put(VERSION, id, Bookmark(b"-", None, marks(wanted)))

    def _create_version(self, row: Row, name: str, wanted: Registers) -> Row:
        """Create it with its number; the server counts, so numbers that the source has no more are made and deleted."""
        number = int(row["version"])
        origin = wanted["tag", ORIGIN]
        body = {"name": name, **self._translated(row), "description": row["description"] or "", "tags": pairs(_tags(wanted))}

        def find() -> Any:
            for version in listed(self._server.source, Wanted(models=(name,)), "model_versions_latest"):
                if dict(version["tags"] or ()).get(ORIGIN) == origin:
                    return {"model_version": version}
            return None

        while True:
            made = self._server.create("model-versions/create", body, find)["model_version"]
            if int(made["version"]) == number:
                return {**row, "description": row["description"], "tags": _tags(wanted), "current_stage": "None"}
            self._delete(name, int(made["version"]))
            if int(made["version"]) > number:
                raise InvalidState(_PASSED.format(name, number))

    def _delete(self, name: str, number: int) -> None:
        self._server.send("model-versions/delete", {"name": name, "version": str(number)}, "DELETE")

    def _translated(self, row: Row) -> dict[str, str]:
        """Source, run and model of a version in the target's ids.

        Raises:
            InvalidState: what it came from is not on the target yet.
        """
        source = str(row["source"] or "")
        scheme, _, rest = source.partition(":/")
        id, _, path = rest.lstrip("/").partition("/")
        # A database doesn't tell the model of a version, but a server wants it said.
        of_source = id if scheme == "models" and id.startswith("m-") else None
        origins = {"run": row["run_id"], "logged_model": row["model_id"] or of_source}
        copies = {kind: self._copied(kind, id) for kind, id in origins.items() if id}
        if scheme == "runs" or (scheme == "models" and id.startswith("m-")):
            source = f"{scheme}:/{self._copied(_SCHEMES[scheme], id)}" + (f"/{path}" if path else "")
        elif self._wanted.artifacts == "copy" and row["run_id"]:
            source = self._moved(source, row["run_id"], copies["run"])
        else:
            source = self._source.reader.artifact_uri(source) or source
        told = {"source": source, "run_id": copies.get("run"), "model_id": copies.get("logged_model"), "run_link": row["run_link"]}
        return {key: value for key, value in told.items() if value}

    def _copied(self, kind: str, id: str) -> str:
        copy = self._copy_of(kind, id)
        if copy is None:
            raise InvalidState(f"Its {kind.replace('_', ' ')} {id} is not on the target. Sync that, too; until then this version waits.")
        return copy

    def _moved(self, uri: str, run_id: str, copy: str) -> str:
        """An artifact URI below a run's folder, below the folder of its copy."""
        listed_runs = self._source.rows("runs_latest", filter=f"attributes.run_id = '{run_id}'")
        root = next((r["artifact_uri"] for batch in listed_runs for r in batch.to_pylist()), None)
        if not root or not uri.startswith(root):
            return self._source.reader.artifact_uri(uri) or uri
        return f"{self._server.reader.run(copy)['artifact_uri']}{uri[len(root) :]}"

    def _give_aliases(self, row: Row, name: str, copy: Row | None) -> None:
        wanted: Registers = {("alias", alias): str(number) for alias, number in row["aliases"] or ()}
        there = entity(MODEL, name, copy) if copy is not None else Entity(MODEL, name)
        key = f"{row['name']}"
        marked = self._marks.get("alias", key)
        tally = self._result.things[MODEL]
        self._apply(list(changes(MODEL, name, wanted, there, split_marks(base_of(marked)))), tally, "registered-models", {"name": name})
        self._marks.put("alias", key, Bookmark(b"-", None, marks(wanted)))

    def _remove_gone(self, models: set[str], versions: set[str], mine: dict[str | None, str]) -> None:
        """What was copied before and the source has no more."""
        for kind, left in ((VERSION, versions), (MODEL, models)):
            for id in self._marks.ids(kind) - left:
                name, _, number = id.rpartition("/") if kind == VERSION else (id, "", "")
                copy = mine.get(self._origin(name))
                if copy is not None and not self._wanted.dry_run:
                    self._result.things[kind].written += 1
                    if kind == VERSION:
                        self._delete(copy, int(number))
                    else:
                        self._server.send("registered-models/delete", {"name": copy}, "DELETE")
                self._marks.drop(kind, id)


def _tags(registers: Registers) -> list[tuple[str, str]]:
    return [(key, value or "") for (field, key), value in registers.items() if field == "tag"]
