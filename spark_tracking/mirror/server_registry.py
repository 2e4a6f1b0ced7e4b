"""Registered models and their versions, from any source into a server's registry, by the numbers that they have at the source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from spark_tracking.errors import InvalidState, SparkTrackingError
from spark_tracking.kinds.catalog import MODEL_VERSION, REGISTERED_MODEL
from spark_tracking.kinds.shapes import Registers, version_id
from spark_tracking.mirror.bookmarks import Bookmarks
from spark_tracking.mirror.changes import changes, entity, seen
from spark_tracking.mirror.copying import MODEL, RUN, TABLES, VERSION, listed
from spark_tracking.mirror.requests import deletion, pairs
from spark_tracking.mirror.result import SyncResult, Wanted
from spark_tracking.mirror.source import Source
from spark_tracking.mirror.target_server import ORIGIN, Server
from spark_tracking.readers.reader import Row

_PASSED = "The target's '{}' has passed version {}, which was deleted there; numbers do not come back."
_SCHEMES = {"runs": "run", "models": "logged_model"}


class ServerRegistry:
    """One sync of a registry into a server; `copy_of` gives the target's id of a run or logged model, if it has one."""

    def __init__(
        self,
        server: Server,
        source: Source,
        marks: Bookmarks,
        wanted: Wanted,
        result: SyncResult,
        copy_of: Callable[[str, str], str | None],
    ) -> None:
        self._server = server
        self._source = source
        self._marks = marks
        self._wanted = wanted
        self._result = result
        self._copy_of = copy_of

    def copy(self, models: Mapping[str, Row], versions: Mapping[str, Row], gone: Callable[[str, Iterable[str]], set[str]]) -> None:
        """Bring the server's registry up to rows of the source; `gone` tells what of a kind was copied and is not among those left."""
        there, known = (listed(self._server.source, Wanted(), kind) for kind in (MODEL, VERSION))
        mine = {dict(row["tags"] or ()).get(ORIGIN): name for name, row in there.items()}
        for name, row in models.items():
            own = sorted((v for v in versions.values() if v["name"] == name), key=lambda v: int(v["version"]))
            copy = mine.get(self._origin(name))
            try:
                copy = self._copy_model(row, there.get(copy or ""), there)
                if copy is None:
                    continue
                numbers = {int(v["version"]): v for v in known.values() if v["name"] == copy}
                done = [self._tried(v, copy, numbers) for v in own]
                if all(done):
                    aliases: Registers = {("alias", alias): str(number) for alias, number in row["aliases"] or ()}
                    self._result.things[MODEL].count(False, self._follow(MODEL, copy, aliases, there.get(copy), "alias", name))
            except SparkTrackingError as error:
                self._result.fail(MODEL, name, error)
        for kind, left in ((VERSION, versions), (MODEL, models)):
            for id in gone(kind, left):
                self._remove(kind, id, mine)

    def _origin(self, id: str) -> str:
        return f"{self._source.id}/{id}"

    def _follow(self, kind: str, id: str, wanted: Registers, copy: Row | None, marked_as: str, origin: str) -> int:
        """Send what changed of a copy; returns how many values, and remembers them as of a kind and the source's id."""
        there = None if copy is None else entity(kind, id, copy)
        events = list(changes(kind, id, wanted, there, self._marks.get(marked_as, origin)))
        if not self._wanted.dry_run:
            self._server.carry_out(events)
        self._marks.put(marked_as, origin, seen(wanted))
        return len(events)

    def _remove(self, kind: str, id: str, mine: Mapping[str | None, str]) -> None:
        """What was copied before and the source has no more."""
        name, _, number = id.rpartition("/") if kind == VERSION else (id, "", "")
        copy = mine.get(self._origin(name))
        if copy is not None and not self._wanted.dry_run:
            self._result.things[kind].written += 1
            self._server.send(deletion(kind, version_id(copy, number) if kind == VERSION else copy))
        self._marks.drop(kind, id)

    def _copy_model(self, row: Row, copy: Row | None, there: Mapping[str, Row]) -> str | None:
        """The name of the copy of a model, made or changed; None where it was deleted on the target, which stands."""
        name = row["name"]
        if copy is None and self._marks.get(MODEL, name) is not None:
            return None
        wanted = {k: v for k, v in REGISTERED_MODEL.registers(row).items() if k[0] == "tag" or k == ("attr", "description")}
        wanted["tag", ORIGIN] = self._origin(name)
        if copy is not None:
            called = str(copy["name"])
            self._result.things[MODEL].count(False, self._follow(MODEL, called, wanted, copy, MODEL, name))
            return called
        called = next(n for n in self._source.names(name) if n not in there)
        if not self._wanted.dry_run:
            body = {"name": called, "description": row["description"] or "", "tags": _tags(wanted)}
            self._server.create("registered-models/create", body, lambda: self._created(MODEL, called, name))
        self._result.things[MODEL].count(True, len(wanted))
        self._marks.put(MODEL, name, seen(wanted))
        return called

    def _created(self, kind: str, name: str, origin: str) -> Row | None:
        """What was made of a name and is the copy of `origin`."""
        found = listed(self._server.source, Wanted(models=(name,)), kind).values()
        return next((row for row in found if dict(row["tags"] or ()).get(ORIGIN) == self._origin(origin)), None)

    # -- versions -----------------------------------------------------------------------------------------------

    def _tried(self, row: Row, name: str, there: Mapping[int, Row]) -> bool:
        try:
            self._copy_version(row, name, there)
        except SparkTrackingError as error:
            self._result.fail(VERSION, version_id(row["name"], row["version"]), error)
            return False
        return True

    def _copy_version(self, row: Row, name: str, there: Mapping[int, Row]) -> None:
        number, id = int(row["version"]), version_id(row["name"], row["version"])
        copy = there.get(number)
        origin = None if copy is None else dict(copy["tags"] or ()).get(ORIGIN)
        if copy is not None and origin != self._origin(id):
            if not (origin or "").startswith(self._origin(row["name"] + "/")):
                raise InvalidState(f"Version {number} of '{name}' on the target was made there; it stays as it is.")
            if not self._wanted.dry_run:
                self._server.send(deletion(VERSION, version_id(name, number)))  # a stand-in that a killed sync left
            copy = None
        if copy is None and self._marks.get(VERSION, id) is not None:
            return  # deleted on the target, which stands
        told = MODEL_VERSION.registers(row).items()
        wanted = {k: v for k, v in told if k[0] == "tag" or k[1] in ("description", "current_stage")}
        wanted["tag", ORIGIN] = self._origin(id)
        is_new = copy is None
        if copy is None:
            self._translated(row)  # raises before it counts, also where nothing is to be written
            if max(there, default=0) > number:
                raise InvalidState(_PASSED.format(name, number))
            if not self._wanted.dry_run:
                copy = self._create_version(row, name, wanted, id)
        sent = 0 if copy is None else self._follow(VERSION, version_id(name, number), wanted, copy, VERSION, id)
        self._result.things[VERSION].count(is_new, len(wanted) if is_new else sent)

    def _create_version(self, row: Row, name: str, wanted: Registers, origin: str) -> Row:
        """Create it with its number; the server counts, so numbers that the source has no more are made and deleted."""
        tags = _tags(wanted)
        body = {"name": name, **self._translated(row), "description": row["description"] or "", "tags": tags}

        def find() -> Any:
            found = self._created(VERSION, name, origin)
            return None if found is None else {"model_version": found}

        while True:
            made = int(self._server.create("model-versions/create", body, find)["model_version"]["version"])
            if made == int(row["version"]):
                return {**row, "tags": [(tag["key"], tag["value"]) for tag in tags], "current_stage": "None"}
            self._server.send(deletion(VERSION, version_id(name, made)))
            if made > int(row["version"]):
                raise InvalidState(_PASSED.format(name, row["version"]))

    def _translated(self, row: Row) -> dict[str, str]:
        """Source, run and model of a version in the target's ids.

        Raises:
            InvalidState: what it came from is not on the target yet.
        """
        source = str(row["source"] or "")
        scheme, _, rest = source.partition(":/")
        id, _, path = rest.lstrip("/").partition("/")
        # A database doesn't tell the model of a version, but a server wants it said.
        is_model = scheme == "models" and id.startswith("m-")
        origins = {"run": row["run_id"], "logged_model": row["model_id"] or (id if is_model else None)}
        copies = {kind: self._copied(kind, id) for kind, id in origins.items() if id}
        if scheme == "runs" or is_model:
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
        found = self._source.rows(TABLES[RUN], filter=f"attributes.run_id = '{run_id}'")
        root = next((r["artifact_uri"] for batch in found for r in batch.to_pylist()), None)
        if not root or not uri.startswith(root):
            return self._source.reader.artifact_uri(uri) or uri
        return f"{self._server.reader.run(copy)['artifact_uri']}{uri[len(root) :]}"


def _tags(registers: Registers) -> list[dict[str, str]]:
    return pairs((key, value or "") for (field, key), value in registers.items() if field == "tag")
