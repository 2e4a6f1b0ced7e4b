"""From any tracking server, a lake above all, into an MLflow server by its REST API.

Such a server gives its own ids. Which copy is whose stands in the copies' tags and, where the source is a lake, in its bookmarks, so
that what did not change costs no request. First each new run is created, empty but for the tag; then models; then runs are filled, so that
parents, models and sources of versions can be given by their new ids. A run's last request marks it as copied.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from spark_tracking.errors import NotFound, SparkTrackingError
from spark_tracking.kinds.catalog import EXPERIMENT, LOGGED_MODEL, RUN
from spark_tracking.kinds.shapes import Registers, milliseconds
from spark_tracking.lake import Event
from spark_tracking.mirror import points
from spark_tracking.mirror.bookmarks import Bookmark, Bookmarks, packed, unpacked
from spark_tracking.mirror.changes import changes, entity, mark, seen, seen_marks
from spark_tracking.mirror.copying import THINGS_AT_ONCE, Copying, Done, chunks
from spark_tracking.mirror.requests import deletion, metric, pairs, restoration
from spark_tracking.mirror.result import Progress, Wanted
from spark_tracking.mirror.server_registry import ServerRegistry
from spark_tracking.mirror.source import Source
from spark_tracking.mirror.target_server import ARTIFACTS, MARK, ORIGIN, PARENT, Server
from spark_tracking.readers.pages import things
from spark_tracking.readers.reader import Row

PARENT_TAG = "mlflow.parentRunId"


class IntoServer(Copying):
    """One sync from a source into a server."""

    def __init__(self, source: Source, server: Server, wanted: Wanted, progress: Progress) -> None:
        self._server = server
        server.reader.ping()
        super().__init__(
            source, Bookmarks(source.reader.lake_root, f"to-{server.id}", wanted.dry_run), wanted, progress, server.reader.name
        )
        self._experiments: dict[str, str] = {}
        self._fresh: set[str] = set()
        self._closed: set[str] = set()
        self._reopened: set[str] = set()

    def _sync(self) -> None:
        if self._wanted.dry_run:
            self._copy()
            return
        with self._server.lock(self._source.id):
            self._copy()
            self._marks.tidy()

    def _copy(self) -> None:
        state = self._source.reader.state()
        deleted = self._copy_experiments()
        ids = tuple(self._experiments)
        if ids and not self._unchanged(state):
            models = self._changed_models(ids)
            with tempfile.TemporaryFile() as spool:
                self._make_runs(_spooled(self._changed_runs(ids), spool))
                self._copy_models(models)
                if not self._wanted.dry_run:
                    spool.seek(0)
                    self._copy_runs(_unspooled(spool))
            self._give_parents()
        if self._wanted.models != "none":
            models_and_versions = self._listed_registry()
            registry = ServerRegistry(self._server, self._source, self._marks, self._wanted, self.result, self.copy_of)
            registry.copy(*models_and_versions, self._gone)
        self._note(state)
        for id in deleted | self._reopened:
            self._server.send(deletion("experiment", id))

    def copy_of(self, kind: str, id: str) -> str | None:
        """The target's id of a run or logged model."""
        found = self._marks.get(f"{kind}@", id)
        return None if found is None else found.base.decode()

    def _note_copy(self, kind: str, id: str, copy: str) -> None:
        self._remember(f"{kind}@", id, Bookmark(b"@", None, copy.encode()))

    def _remember(self, kind: str, id: str, bookmark: Bookmark) -> None:
        self._marks.learn(kind, id, bookmark)
        self._marks.put(kind, id, bookmark)

    def _origin(self, id: str) -> str:
        return f"{self._source.id}/{id}"

    # -- experiments --------------------------------------------------------------------------------------------

    def _copy_experiments(self) -> set[str]:
        """Create and change them; returns those that are to be deleted once their runs are there."""
        rows = self._listed_experiments()
        there = {row["experiment_id"]: row for row in self._server.rows(EXPERIMENT)}
        mine = {dict(row["tags"] or ()).get(ORIGIN): id for id, row in there.items()}
        names = {row["name"]: id for id, row in there.items()}
        known_before = self._marks.ids("experiment") & {row["experiment_id"] for row in rows}
        if any(self._origin(id) not in mine for id in known_before):
            self._marks.clear()  # the target was set up anew, or lost things for good: its tags say what it has
        deleted: set[str] = set()
        for row in rows:
            id = mine.get(self._origin(row["experiment_id"])) or self._unused_default(row, there)
            name = next(n for n in self._source.names(row["name"]) if names.get(n, id) == id)
            known = None if id is None else there[id]
            if self._is_refused(row, known):
                reason = f"'{name}' was deleted on the target. Restore it there, or choose others by --experiment."
                self.result.fail("experiment", row["experiment_id"], reason)
                continue
            id, to_delete = self._copy_experiment(row, name, known)
            names[name] = id
            deleted |= {id} if to_delete else set()
        return deleted

    def _is_refused(self, row: Row, known: Row | None) -> bool:
        """Whether somebody deleted the copy; nothing can be created in it then, and it is not ours to restore."""
        if known is None or known["lifecycle_stage"] != "deleted":
            return False
        if row["lifecycle_stage"] == "deleted":
            self._closed.add(row["experiment_id"])
            return False
        return mark("attr", "lifecycle_stage", "deleted") not in seen_marks(self._marks.get("experiment", row["experiment_id"]))

    def _copy_experiment(self, row: Row, name: str, known: Row | None) -> tuple[str, bool]:
        """Create or change one; returns its id, and whether it is to be deleted in the end."""
        origin = row["experiment_id"]
        registers = {**EXPERIMENT.registers(row), ("attr", "name"): name, ("tag", ORIGIN): self._origin(origin)}
        wanted = {key: value for key, value in registers.items() if key[0] == "tag" or key[1] in ("name", "lifecycle_stage")}
        made = {"name": name, "lifecycle_stage": "active", "tags": [(ORIGIN, self._origin(origin))]}
        copy = known or {"experiment_id": self._create_experiment(name, row), **made}
        id = self._experiments[origin] = str(copy["experiment_id"])
        events = list(changes("experiment", id, wanted, entity("experiment", id, copy), self._marks.get("experiment", origin)))
        self.result.things["experiment"].count(known is None, len(events))
        if self._wanted.dry_run:
            return id, False
        deletion_event = Event("experiment", id, "attr", "lifecycle_stage", "deleted")
        self._server.carry_out([event for event in events if event != deletion_event])
        self._marks.put("experiment", origin, seen(wanted))
        return id, deletion_event in events

    def _unused_default(self, row: Row, there: dict[str, Row]) -> str | None:
        """The experiment that every server has from the start, if nobody used it."""
        default = there.get("0")
        if row["experiment_id"] != "0" or default is None or {row["name"], default["name"]} != {"Default"} or default["tags"]:
            return None
        body = {"experiment_ids": ["0"], "run_view_type": "ALL", "max_results": 1}
        return None if self._server.reader.http.post("runs/search", body).get("runs") else "0"

    def _create_experiment(self, name: str, row: Row) -> str:
        if self._wanted.dry_run:
            return f"new {row['experiment_id']}"
        body = {"name": name, "tags": pairs([(ORIGIN, self._origin(row["experiment_id"]))])}

        def find() -> Any:
            return next((found for found in self._server.rows(EXPERIMENT) if found["name"] == name), None)

        return str(self._server.create("experiments/create", body, find)["experiment_id"])

    # -- runs: made ---------------------------------------------------------------------------------------------

    def _make_runs(self, batches: Iterator[pa.RecordBatch]) -> None:
        tally = self.result.things["run"]
        with ThreadPoolExecutor(self._server.reader.at_once) as pool:
            for rows in (rows for batch in batches for rows in chunks(batch.to_pylist(), THINGS_AT_ONCE)):
                self._find_copies([row for row in rows if self.copy_of("run", row["run_id"]) is None])
                new = [row for row in rows if self.copy_of("run", row["run_id"]) is None]
                if self._wanted.dry_run:
                    tally.new += len(new)
                    tally.changed += sum(not self._marks.is_same("run", row["run_id"], row["digest"]) for row in rows) - len(new)
                for row, made in zip(new, pool.map(self._make_run, new)):
                    if isinstance(made, Exception):
                        self.result.fail("run", row["run_id"], made)
                        continue
                    self._note_copy("run", row["run_id"], made)
                    self._fresh.add(row["run_id"])

    def _find_copies(self, rows: list[Row]) -> None:
        """Learn from the target which of the runs it has, and in what state."""
        experiments = [self._experiments[row["experiment_id"]] for row in rows]
        known = [id for id in experiments if not id.startswith("new ")]
        if not rows or not known:
            return
        starts = [milliseconds(row["start_time"]) for row in rows]
        span = (min(starts), max(starts)) if min(starts) > 0 else (None, None)
        stages = {row["run_id"]: row["lifecycle_stage"] for row in rows}
        copies = self._server.copies(known, [self._origin(row["run_id"]) for row in rows], *span)
        for copy in sorted(copies, key=lambda copy: (MARK not in dict(copy["tags"]), copy["run_id"])):
            tags = dict(copy["tags"])
            id = tags[ORIGIN].partition("/")[2]
            if self.copy_of("run", id) is not None:
                if copy["lifecycle_stage"] == "active":  # created twice: an answer was lost, and came late
                    self._server.send(deletion("run", copy["run_id"]))
                continue
            self._note_copy("run", id, copy["run_id"])
            if PARENT in tags:
                self._marks.learn("waiting", id, Bookmark(b"-", None, tags[PARENT].encode()))
            marked = unpacked(tags.get(MARK))
            if marked is not None and (stages[id] == "active" or copy["lifecycle_stage"] == "deleted"):
                self._marks.learn("run", id, marked)

    def _make_run(self, row: Row) -> str | Exception:
        if self._wanted.dry_run:
            return f"new {row['run_id']}"
        experiment, origin = self._experiments[row["experiment_id"]], self._origin(row["run_id"])
        start = milliseconds(row["start_time"])
        told = {"experiment_id": experiment, "user_id": row["created_by"] or "", "start_time": start, "run_name": row["run_name"] or ""}

        def find() -> Any:
            found = next(self._server.copies([experiment], [origin], start or None, start or None), None)
            return None if found is None else {"run": {"info": found}}

        try:
            if row["experiment_id"] in self._closed and experiment not in self._reopened:
                self._server.send(restoration("experiment", experiment))
                self._reopened.add(experiment)
            made = self._server.create("runs/create", {**told, "tags": pairs([(ORIGIN, origin)])}, find)
            return str(made["run"]["info"]["run_id"])
        except SparkTrackingError as error:
            return error

    # -- runs: filled -------------------------------------------------------------------------------------------

    def _copy_chunk(self, rows: list[Row]) -> None:
        super()._copy_chunk(rows)
        self._marks.save()

    def _due(self, rows: list[Row]) -> list[Row]:
        rows = [row for row in rows if self.copy_of("run", row["run_id"])]
        return [row for row in rows if self._is_news("run", row["run_id"], row["digest"])]

    def _bring_runs(self, rows: list[Row], arrived: Mapping[str, pa.Table]) -> Sequence[Done | Exception]:
        def fill(row: Row) -> Done | Exception:
            try:
                return self._fill(row, arrived.get(row["run_id"]))
            except NotFound as error:
                if row["run_id"] in self._fresh:
                    return error
                return Done(Bookmark(row["digest"], row["points"], b""), False, 0)  # deleted for good on the target, which stands
            except Exception as error:
                return error

        with ThreadPoolExecutor(self._server.reader.at_once) as pool:
            return list(pool.map(fill, rows))

    def _fill(self, row: Row, arrived: pa.Table | None) -> Done:
        """Bring one copy up to its run."""
        id, copy = row["run_id"], str(self.copy_of("run", row["run_id"]))
        known = None if id in self._fresh else self._server.reader.run(copy)
        wanted = self._wanted_of(row)
        bookmark = seen(wanted, row["digest"], row["points"])
        events = list(changes("run", copy, wanted, None if known is None else entity("run", copy, known), self._marks.get("run", id)))
        deleted = known is not None and known["lifecycle_stage"] == "deleted"
        if deleted and row["lifecycle_stage"] == "active" and not any(event[2:4] == ("attr", "lifecycle_stage") for event in events):
            return Done(bookmark, False, 0)  # deleted on the target, which stands
        new_points = self._new_points(row, arrived, copy, known)
        if deleted and (events or new_points):
            self._server.send(restoration("run", copy))
        if self._wanted.artifacts == "copy":
            uri = known["artifact_uri"] if known else self._server.reader.run(copy)["artifact_uri"]
            self._copy_files(row["artifact_uri"], self._server.reader.artifact_uri(uri))
        state = Event("run", copy, "tag", MARK, packed(bookmark))
        if known is None or events or new_points or dict(known["tags"]).get(MARK) != state.value:
            tags = [e for e in events if e.field == "tag" and e.value is not None and e.key != ORIGIN]
            self._server.carry_out([e for e in events if e.field != "tag" or e.value is None])
            self._server.log_points(copy, new_points)
            self._server.carry_out([*tags, state])  # last, so that all is there when it is said to be
            if row["lifecycle_stage"] == "deleted":
                self._server.send(deletion("run", copy))
        return Done(bookmark, known is None, len(events), len(new_points))

    def _wanted_of(self, row: Row) -> Registers:
        """The registers of a run in the target's ids, without what a server keeps to itself."""
        told = {"run_name", "status", "end_time", "lifecycle_stage"}
        wanted: Registers = {}
        for (field, key), value in RUN.registers(row).items():
            if field in ("model_input", "model_output"):
                copy = self.copy_of("logged_model", key)
                if copy is not None:
                    wanted[field, copy] = value
            elif field == "tag":
                wanted[field, key] = (value or "").replace(row["run_id"], str(self.copy_of("run", row["run_id"])))
            elif field != "attr" or key in told:
                wanted[field, key] = value
        parent = dict(row["tags"] or ()).get(PARENT_TAG)
        if parent:
            copy = self.copy_of("run", parent)
            if copy is None:
                del wanted["tag", PARENT_TAG]
                self._remember("waiting", row["run_id"], Bookmark(b"-", None, parent.encode()))
            wanted["tag", PARENT if copy is None else PARENT_TAG] = copy or parent
        return wanted | self._own_tags(row, row["run_id"])

    def _own_tags(self, row: Row, id: str) -> Registers:
        """The tags that say what a copy is of, and where its files are."""
        elsewhere = row["artifact_uri"] and self._wanted.artifacts == "reference"
        files: Registers = {("tag", ARTIFACTS): self._source.reader.artifact_uri(row["artifact_uri"])} if elsewhere else {}
        return {**files, ("tag", ORIGIN): self._origin(id)}

    def _new_points(self, row: Row, arrived: pa.Table | None, copy: str, known: Row | None) -> list[dict[str, Any]]:
        if arrived is None:
            return []
        there = set() if known is None else points.keys(self._server.reader.points_of([known]))
        models = self._models.of(row["run_id"])
        found: list[dict[str, Any]] = []
        measured: set[tuple[str, str, int, int]] = set()  # a server's model has one value at a time and step
        for block in points.of_run(copy, "", arrived, there):
            for name, value, at, step in zip(block.names, block.values, block.times, block.steps):
                model_id, dataset_name, dataset_digest = models.get(points.key(name, at, step, value), (None, None, None))
                model = self.copy_of("logged_model", model_id) if model_id else None
                of = {"model_id": model, "dataset_name": dataset_name, "dataset_digest": dataset_digest}
                is_first = model is not None and (model, name, at, step) not in measured
                measured.add((str(model), name, at, step))
                found.append(metric(name, value, at, step, of if is_first else {}))
        return found

    def _give_parents(self) -> None:
        """Runs whose parent has come since they were copied."""
        for id in self._marks.ids("waiting") if not self._wanted.dry_run else ():
            waiting = self._marks.get("waiting", id)
            parent, copy = self.copy_of("run", waiting.base.decode() if waiting else ""), self.copy_of("run", id)
            if parent is None or copy is None:
                continue
            try:
                for key, value in ((PARENT_TAG, parent), (PARENT, None)):
                    self._server.carry_out([Event("run", copy, "tag", key, value)])
            except NotFound:
                pass  # it waits no more, or is gone
            except SparkTrackingError as error:
                self.result.fail("run", id, error)
                continue
            self.result.things["run"].written += 1
            self._marks.drop("waiting", id)

    # -- logged models ------------------------------------------------------------------------------------------

    def _with_copies(self, models: list[Row]) -> Iterator[tuple[Row, Row | None]]:
        ids = dict.fromkeys(self._experiments[row["experiment_id"]] for row in models)
        known = tuple(id for id in ids if not id.startswith("new "))
        listed = self._server.rows(LOGGED_MODEL, experiment_ids=known) if known else iter(())
        there = {dict(model["tags"] or ()).get(ORIGIN): model for model in listed}
        yield from ((row, there.get(self._origin(row["model_id"]))) for row in models)

    def _bring_model(self, row: Row, copy: Row | None) -> Done | None:
        origin, marked, gone = row["model_id"], self._marks.get("logged_model", row["model_id"]), row["lifecycle_stage"] == "deleted"
        if copy is None and (marked is not None or gone):
            return None  # deleted on one side, and a server shows no deleted ones
        is_new = copy is None
        if self._wanted.dry_run:
            self._note_copy("logged_model", origin, copy["model_id"] if copy else f"new {origin}")
            return Done(Bookmark(b"", None, b""), is_new, 0)
        told = LOGGED_MODEL.registers(row).items()
        wanted = {key: value for key, value in told if key[0] != "attr" or key[1] in ("status", "lifecycle_stage")}
        wanted |= self._own_tags(row, origin)
        copy = copy or self._create_model(row)
        id = copy["model_id"]
        self._note_copy("logged_model", origin, id)
        events = list(changes("logged_model", id, wanted, entity("logged_model", id, copy), marked))
        self._server.carry_out(events)
        self._copy_files(row["artifact_uri"], self._server.reader.artifact_uri(copy["artifact_uri"]))
        if gone:
            self._server.send(deletion("logged_model", id))
        return Done(seen(wanted, row["digest"]), is_new, len(events))

    def _create_model(self, row: Row) -> Row:
        experiment, origin = self._experiments[row["experiment_id"]], self._origin(row["model_id"])
        source_run = self.copy_of("run", row["source_run_id"]) if row["source_run_id"] else None
        told = {"experiment_id": experiment, "name": row["name"], "model_type": row["model_type"], "source_run_id": source_run}
        body = {**{k: v for k, v in told.items() if v}, "tags": pairs([(ORIGIN, origin)])}

        def find() -> Any:
            models = self._server.rows(LOGGED_MODEL, experiment_ids=(experiment,))
            return next(({"row": model} for model in models if dict(model["tags"] or ()).get(ORIGIN) == origin), None)

        made = self._server.create("logged-models", body, find)
        found: Row = made.get("row") or things("logged_models_latest", [made["model"]]).to_pylist()[0]
        return found


def _spooled(batches: Iterator[pa.RecordBatch], spool: Any) -> Iterator[pa.RecordBatch]:
    """The batches, which a file keeps for the second pass, so that memory is bounded and the source is listed once."""
    writer = None
    for batch in batches:
        writer = writer or pa.ipc.new_stream(spool, batch.schema)
        writer.write_batch(batch)
        yield batch
    if writer is not None:
        writer.close()


def _unspooled(spool: Any) -> Iterator[pa.RecordBatch]:
    """The batches that a file holds; none where it is empty."""
    try:
        yield from pa.ipc.open_stream(spool)
    except pa.ArrowInvalid:
        return  # nothing had changed
