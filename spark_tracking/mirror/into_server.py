"""From any tracking server, a lake above all, into an MLflow server by its REST API.

Such a server gives its own ids. Which copy is whose stands in the copies' tags and, where the source is a lake, in its bookmarks, so
that what did not change costs no request. First each new run is created, empty but for the tag; then models; then runs are filled, so that
parents, models and sources of versions can be given by their new ids. A run's last request marks it as copied.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from spark_tracking.errors import NotFound, SparkTrackingError
from spark_tracking.kinds.catalog import EXPERIMENT, LOGGED_MODEL, RUN
from spark_tracking.kinds.shapes import Registers, milliseconds
from spark_tracking.lake import Event
from spark_tracking.mirror import points
from spark_tracking.mirror.bookmarks import Bookmark, Bookmarks, packed, unpacked
from spark_tracking.mirror.copying import RUNS_AT_ONCE, Copying, base_of, chunks, unspooled
from spark_tracking.mirror.registers import (
    Row,
    changes,
    entity,
    mark,
    marks,
    split_marks,
)
from spark_tracking.mirror.result import Progress, SyncResult, Wanted
from spark_tracking.mirror.server import ARTIFACTS, MARK, ORIGIN, PARENT, Server, dataset, metric, pairs
from spark_tracking.mirror.server_registry import ServerRegistry
from spark_tracking.mirror.source import Source
from spark_tracking.readers.pages import things

PARENT_TAG = "mlflow.parentRunId"


class IntoServer(Copying):
    """One sync from a source into a server."""

    def __init__(self, source: Source, server: Server, wanted: Wanted, progress: Progress) -> None:
        self._server = server
        self._server.reader.ping()
        marks = Bookmarks(source.reader.lake_root, f"to-{self._server.id}", wanted.dry_run)
        super().__init__(source, marks, wanted, progress, self._server.reader.name)
        self._experiments: dict[str, str] = {}
        self._fresh: set[str] = set()
        self._closed: set[str] = set()
        self._reopened: set[str] = set()

    def sync(self) -> SyncResult:
        """Do it."""
        begin = time.monotonic()
        if self._wanted.dry_run:
            self._do()
        else:
            with self._server.lock(self._source.id):
                self._do()
                self._marks.tidy()
        self.result.seconds = time.monotonic() - begin
        return self.result

    def _do(self) -> None:
        state = self._source.reader.state()
        deleted = self._copy_experiments()
        ids = tuple(self._experiments)
        if ids and not self._unchanged(state):
            models = self._list_models(ids)
            with tempfile.TemporaryFile() as spool:
                self._make_runs(self._spooled(self._changed_runs(ids), spool))
                self._copy_models(models)
                if not self._wanted.dry_run:
                    spool.seek(0)
                    self._copy_runs(unspooled(spool))
            self._give_parents()
        if self._wanted.models != "none":
            ServerRegistry(self._server, self._source, self._marks, self._wanted, self.result, self.copy_of, self._expect).sync()
        self._note_listings()
        self._note_state(state)
        for id in deleted | self._reopened:
            self._server.send("experiments/delete", {"experiment_id": id})

    def copy_of(self, kind: str, id: str) -> str | None:
        """The target's id of a run or logged model."""
        found = self._marks.get(f"{kind}@", id)
        return None if found is None else found.base.decode()

    def _note_copy(self, kind: str, id: str, copy: str) -> None:
        bookmark = Bookmark(b"@", None, copy.encode())
        self._remember(f"{kind}@", id, bookmark)

    def _remember(self, kind: str, id: str, bookmark: Bookmark) -> None:
        self._marks.learn(kind, id, bookmark)
        self._marks.put(kind, id, bookmark)

    def _origin(self, id: str) -> str:
        return f"{self._source.id}/{id}"

    # -- experiments --------------------------------------------------------------------------------------------

    def _copy_experiments(self) -> set[str]:
        """Create and change them; returns those that are to be deleted once their runs are there."""
        rows = self._listed_experiments()
        there = {row["experiment_id"]: row for batch in self._server.source.rows("experiments_latest") for row in batch.to_pylist()}
        mine = {dict(row["tags"] or ()).get(ORIGIN): id for id, row in there.items()}
        names = {row["name"]: id for id, row in there.items()}
        known_before = self._marks.ids("experiment") & {row["experiment_id"] for row in rows}
        if any(self._origin(id) not in mine for id in known_before):
            self._marks.clear()  # the target was set up anew, or lost things for good: its tags say what it has
        self.result.things["experiment"].seen = len(rows)
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
        base = split_marks(base_of(self._marks.get("experiment", row["experiment_id"])))
        return mark("attr", "lifecycle_stage", "deleted") not in base

    def _copy_experiment(self, row: Row, name: str, known: Row | None) -> tuple[str, bool]:
        """Create or change one; returns its id, and whether it is to be deleted in the end."""
        origin, tally = row["experiment_id"], self.result.things["experiment"]
        registers = {**EXPERIMENT.registers(row), ("attr", "name"): name, ("tag", ORIGIN): self._origin(origin)}
        wanted = {key: value for key, value in registers.items() if key[0] == "tag" or key[1] in ("name", "lifecycle_stage")}
        new = known is None
        if known is None:
            id = self._create_experiment(name, wanted, row)
            known = {"experiment_id": id, "tags": [(ORIGIN, self._origin(origin))], "name": name, "lifecycle_stage": "active"}
        id = self._experiments[origin] = str(known["experiment_id"])
        base = split_marks(base_of(self._marks.get("experiment", origin)))
        events = list(changes("experiment", id, wanted, entity("experiment", id, known), base))
        tally.new, tally.changed, tally.written = tally.new + new, tally.changed + (not new and bool(events)), tally.written + len(events)
        deletion = Event("experiment", id, "attr", "lifecycle_stage", "deleted")
        if not self._wanted.dry_run:
            for event in events:
                if event != deletion:
                    self._change_experiment(event)
            self._marks.put("experiment", origin, Bookmark(b"-", None, marks(wanted)))
        return id, deletion in events and not self._wanted.dry_run

    def _unused_default(self, row: Row, there: dict[str, Row]) -> str | None:
        """The experiment that every server has from the start, if nobody used it."""
        default = there.get("0")
        if row["experiment_id"] != "0" or default is None or {row["name"], default["name"]} != {"Default"} or default["tags"]:
            return None
        body = {"experiment_ids": ["0"], "run_view_type": "ALL", "max_results": 1}
        return None if self._server.send("runs/search", body).get("runs") else "0"

    def _create_experiment(self, name: str, wanted: Registers, row: Row) -> str:
        if self._wanted.dry_run:
            return f"new {row['experiment_id']}"
        tag = [{"key": ORIGIN, "value": wanted["tag", ORIGIN]}]

        def find() -> Any:
            found = [r for batch in self._server.source.rows("experiments_latest") for r in batch.to_pylist() if r["name"] == name]
            return found[0] if found else None

        return str(self._server.create("experiments/create", {"name": name, "tags": tag}, find)["experiment_id"])

    def _change_experiment(self, event: Event) -> None:
        if event.field == "tag":
            body = {"experiment_id": event.id, "key": event.key}
            path = "experiments/delete-experiment-tag" if event.value is None else "experiments/set-experiment-tag"
            self._server.send(path, body if event.value is None else {**body, "value": event.value})
        elif event.key == "name":
            self._server.send("experiments/update", {"experiment_id": event.id, "new_name": event.value})
        else:
            self._server.send("experiments/restore", {"experiment_id": event.id})

    # -- runs ---------------------------------------------------------------------------------------------------

    def _spooled(self, batches: Iterator[pa.RecordBatch], spool: Any) -> Iterator[pa.RecordBatch]:
        """The batches, which a file keeps for the second pass, so that memory is bounded and the source is listed once."""
        writer = None
        for batch in batches:
            writer = writer or pa.ipc.new_stream(spool, batch.schema)
            writer.write_batch(batch)
            yield batch
        if writer is not None:
            writer.close()

    def _make_runs(self, batches: Iterator[pa.RecordBatch]) -> None:
        tally = self.result.things["run"]
        with ThreadPoolExecutor(self._server.reader.at_once) as pool:
            for batch in batches:
                for rows in chunks(batch.to_pylist(), RUNS_AT_ONCE):
                    self._find_copies([row for row in rows if self.copy_of("run", row["run_id"]) is None])
                    new = [row for row in rows if self.copy_of("run", row["run_id"]) is None]
                    tally.new += len(new)
                    if self._wanted.dry_run:
                        tally.changed += sum(not self._same("run", row["run_id"], row["digest"]) for row in rows) - len(new)
                    for row, made in zip(new, pool.map(self._make_run, new)):
                        if isinstance(made, str):
                            self._note_copy("run", row["run_id"], made)
                            self._fresh.add(row["run_id"])
                        elif made is not None:
                            tally.new -= 1
                            self.result.fail("run", row["run_id"], made)

    def _find_copies(self, rows: list[Row]) -> None:
        """Learn from the target which of the runs it has, and in what state."""
        experiments = [self._experiments[row["experiment_id"]] for row in rows]
        known = [id for id in experiments if not id.startswith("new ")]
        if not rows or not known:
            return
        starts = [milliseconds(row["start_time"]) for row in rows]
        span = (min(starts), max(starts)) if min(starts) > 0 else (None, None)
        deleted = {row["run_id"]: row["lifecycle_stage"] for row in rows}
        copies = self._server.copies(known, [self._origin(row["run_id"]) for row in rows], *span)
        for copy in sorted(copies, key=lambda copy: (MARK not in dict(copy["tags"]), copy["run_id"])):
            tags = dict(copy["tags"])
            id = tags[ORIGIN].partition("/")[2]
            if self.copy_of("run", id) is not None:
                if copy["lifecycle_stage"] == "active":  # created twice: an answer was lost, and came late
                    self._server.send("runs/delete", {"run_id": copy["run_id"]})
                continue
            self._note_copy("run", id, copy["run_id"])
            if PARENT in tags:
                self._marks.learn("waiting", id, Bookmark(b"-", None, tags[PARENT].encode()))
            marked = unpacked(tags.get(MARK))
            if marked is not None and (deleted[id] == "active" or copy["lifecycle_stage"] == "deleted"):
                self._marks.learn("run", id, marked)

    def _make_run(self, row: Row) -> str | Exception | None:
        if self._wanted.dry_run:
            return f"new {row['run_id']}"
        experiment, origin = self._experiments[row["experiment_id"]], self._origin(row["run_id"])
        start = milliseconds(row["start_time"])
        body = {"experiment_id": experiment, "user_id": row["created_by"] or "", "start_time": start, "run_name": row["run_name"] or ""}

        def find() -> Any:
            found = next(self._server.copies([experiment], [origin], start or None, start or None), None)
            return None if found is None else {"run": {"info": found}}

        try:
            if row["experiment_id"] in self._closed and experiment not in self._reopened:
                self._server.send("experiments/restore", {"experiment_id": experiment})
                self._reopened.add(experiment)
            made = self._server.create("runs/create", {**body, "tags": [{"key": ORIGIN, "value": origin}]}, find)
            return str(made["run"]["info"]["run_id"])
        except SparkTrackingError as error:
            return error

    def _copy_together(self, rows: list[Row]) -> None:
        verify = self._wanted.verify
        rows = [row for row in rows if self.copy_of("run", row["run_id"])]
        rows = [row for row in rows if verify or not self._same("run", row["run_id"], row["digest"])]
        self._complete(rows)
        arrived = self._points(rows)
        with ThreadPoolExecutor(self._server.reader.at_once) as pool:
            done = list(pool.map(lambda row: self._tried(row, arrived.get(row["run_id"])), rows))
        for row, what in zip(rows, done):
            if isinstance(what, Exception):
                self.result.fail("run", row["run_id"], what)
                continue
            bookmark, written, logged = what
            tally = self.result.things["run"]
            tally.changed += row["run_id"] not in self._fresh and bool(written or logged)
            tally.written += written
            self.result.points += logged
            self._marks.put("run", row["run_id"], bookmark)
        self._marks.save()
        self._progress("run", len(rows))

    def _tried(self, row: Row, arrived: pa.Table | None) -> tuple[Bookmark, int, int] | Exception:
        try:
            return self._fill(row, arrived)
        except NotFound as error:
            if row["run_id"] in self._fresh:
                return error
            return Bookmark(row["digest"], row["points"], b""), 0, 0  # deleted for good on the target, which stands
        except Exception as error:
            return error

    def _fill(self, row: Row, arrived: pa.Table | None) -> tuple[Bookmark, int, int]:
        """Bring one copy up to its run; returns its bookmark, and how many values and points were written."""
        id, copy = row["run_id"], str(self.copy_of("run", row["run_id"]))
        known = None if id in self._fresh else self._server.reader.run(copy)
        wanted = self._wanted_of(row, known)
        base = split_marks(base_of(self._marks.get("run", id)))
        bookmark = Bookmark(row["digest"], row["points"], marks(wanted))
        events = list(changes("run", copy, wanted, None if known is None else entity("run", copy, known), base))
        stage = next((event.value for event in events if event[2:4] == ("attr", "lifecycle_stage")), None)
        deleted = known is not None and known["lifecycle_stage"] == "deleted"
        if deleted and stage is None and row["lifecycle_stage"] == "active":
            return bookmark, 0, 0  # deleted on the target, which stands
        metrics = self._new_points(row, arrived, copy, known)
        state = packed(bookmark)
        if deleted and (events or metrics):
            self._server.send("runs/restore", {"run_id": copy})
        if self._wanted.artifacts == "copy":
            uri = known["artifact_uri"] if known else self._server.reader.run(copy)["artifact_uri"]
            self._copy_files(row["artifact_uri"], self._server.reader.artifact_uri(uri))
        if known is None or events or metrics or dict(known["tags"]).get(MARK) != state:
            self._write(copy, events, metrics, state)
            if row["lifecycle_stage"] == "deleted":
                self._server.send("runs/delete", {"run_id": copy})
        return bookmark, len(events), len(metrics)

    def _wanted_of(self, row: Row, known: Row | None) -> Registers:
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
        if self._wanted.artifacts == "reference" and row["artifact_uri"]:
            wanted["tag", ARTIFACTS] = self._source.reader.artifact_uri(row["artifact_uri"])
        wanted["tag", ORIGIN] = self._origin(row["run_id"])
        return wanted

    def _new_points(self, row: Row, arrived: pa.Table | None, copy: str, known: Row | None) -> list[dict[str, Any]]:
        if arrived is None:
            return []
        there = set() if known is None else points.keys(self._server.reader.points_of([known]))
        blocks = points.of_run(copy, "", arrived, there)
        models = self._models.of(row["run_id"])
        found: list[dict[str, Any]] = []
        measured: set[tuple[str, str, int, int]] = set()  # a server's model has one value at a time and step
        for block in blocks:
            for name, value, at, step in zip(block.names, block.values, block.times, block.steps):
                model_id, dataset_name, dataset_digest = models.get(points.key(name, at, step, value), (None, None, None))
                model = self.copy_of("logged_model", model_id) if model_id else None
                of = {"model_id": model, "dataset_name": dataset_name, "dataset_digest": dataset_digest}
                is_first = model is not None and (model, name, at, step) not in measured
                measured.add((str(model), name, at, step))
                found.append(metric(name, value, at, step, of if is_first else {}))
        return found

    def _write(self, copy: str, events: list[Event], metrics: list[dict[str, Any]], state: str) -> None:
        """Everything but the deletion. Tags go last, and the one that says that all is there is the last of them."""
        of = {field: {e.key: e.value for e in events if e.field == field} for field in ("param", "tag", "dataset", "attr")}
        data = [dataset(json.loads(value)) for value in of["dataset"].values() if value]
        inputs = [{"model_id": e.key} for e in events if e.field == "model_input" and e.value is not None]
        outputs = [{"model_id": e.key, "step": int(e.value or 0)} for e in events if e.field == "model_output" and e.value is not None]
        if data or inputs:
            self._server.send("runs/log-inputs", {"run_id": copy, "datasets": data, "models": inputs})
        if outputs:
            self._server.send("runs/outputs", {"run_id": copy, "models": outputs})
        info = {key: of["attr"][key] for key in ("status", "end_time", "run_name") if of["attr"].get(key)}
        if info:
            self._server.send("runs/update", {"run_id": copy, **info})
        for key in [key for key, value in of["tag"].items() if value is None]:
            self._server.send("runs/delete-tag", {"run_id": copy, "key": key})
        tags = {key: value for key, value in of["tag"].items() if value is not None and key != ORIGIN}
        params = {key: value or "" for key, value in of["param"].items()}
        self._server.log(copy, metrics, params, {**tags, MARK: state})

    def _give_parents(self) -> None:
        """Runs whose parent has come since they were copied."""
        for id in self._marks.ids("waiting") if not self._wanted.dry_run else ():
            waiting = self._marks.get("waiting", id)
            parent, copy = self.copy_of("run", base_of(waiting).decode()), self.copy_of("run", id)
            if parent is None or copy is None:
                continue
            try:
                self._server.log(copy, [], {}, {PARENT_TAG: parent})
                self._server.send("runs/delete-tag", {"run_id": copy, "key": PARENT})
            except NotFound:
                pass  # it waits no more, or is gone
            except SparkTrackingError as error:
                self.result.fail("run", id, error)
                continue
            self.result.things["run"].written += 1
            self._marks.drop("waiting", id)

    # -- logged models ------------------------------------------------------------------------------------------

    def _copy_models(self, rows: list[Row]) -> None:
        if not rows:
            return
        tally = self.result.things["logged_model"]
        ids = dict.fromkeys(self._experiments[row["experiment_id"]] for row in rows)
        known = tuple(id for id in ids if not id.startswith("new "))
        listed = self._server.source.rows("logged_models_latest", experiment_ids=known) if known else iter(())
        there = {dict(model["tags"] or ()).get(ORIGIN): model for batch in listed for model in batch.to_pylist()}
        for row in rows:
            copy = there.get(self._origin(row["model_id"]))
            if self._wanted.dry_run:
                if copy is not None or (row["lifecycle_stage"] != "deleted" and self._marks.get("logged_model", row["model_id"]) is None):
                    self._note_copy("logged_model", row["model_id"], copy["model_id"] if copy else f"new {row['model_id']}")
                    tally.new += copy is None
                continue
            tally.new += copy is None
            try:
                written = self._copy_model(row, copy)
            except Exception as error:
                tally.new -= copy is None
                self.result.fail("logged_model", row["model_id"], error)
                continue
            tally.changed += copy is not None and bool(written)
            tally.written += written
        self._progress("logged_model", len(rows))

    def _copy_model(self, row: Row, copy: Row | None) -> int:
        marked = self._marks.get("logged_model", row["model_id"])
        if copy is None and (marked is not None or row["lifecycle_stage"] == "deleted"):
            return 0  # deleted on one side, and a server shows no deleted ones
        wanted = {
            key: value for key, value in LOGGED_MODEL.registers(row).items() if key[0] != "attr" or key[1] in ("status", "lifecycle_stage")
        }
        wanted["tag", ORIGIN] = self._origin(row["model_id"])
        if self._wanted.artifacts == "reference" and row["artifact_uri"]:
            wanted["tag", ARTIFACTS] = self._source.reader.artifact_uri(row["artifact_uri"])
        if copy is None:
            copy = self._create_model(row)
        id = copy["model_id"]
        self._note_copy("logged_model", row["model_id"], id)
        events = list(changes("logged_model", id, wanted, entity("logged_model", id, copy), split_marks(base_of(marked))))
        for field, path, method in (("param", "params", "POST"), ("tag", "tags", "PATCH")):
            items = [(e.key, e.value) for e in events if e.field == field and e.value is not None]
            for start in range(0, len(items), 100):
                self._server.send(f"logged-models/{id}/{path}", {"model_id": id, path: pairs(items[start : start + 100])}, method)
        for event in events:
            if event.field == "tag" and event.value is None:
                self._server.send(f"logged-models/{id}/tags/{event.key}", {}, "DELETE")
        status = next((e.value for e in events if e[2:4] == ("attr", "status")), None)
        if status in ("READY", "FAILED"):
            name = {"READY": "LOGGED_MODEL_READY", "FAILED": "LOGGED_MODEL_UPLOAD_FAILED"}[status]
            self._server.send(f"logged-models/{id}", {"model_id": id, "status": name}, "PATCH")
        if self._wanted.artifacts == "copy":
            self._copy_files(row["artifact_uri"], self._server.reader.artifact_uri(copy["artifact_uri"]))
        if row["lifecycle_stage"] == "deleted":
            self._server.send(f"logged-models/{id}", {}, "DELETE")
        self._marks.put("logged_model", row["model_id"], Bookmark(row["digest"], None, marks(wanted)))
        return len(events)

    def _create_model(self, row: Row) -> Row:
        experiment, origin = self._experiments[row["experiment_id"]], self._origin(row["model_id"])
        source_run = self.copy_of("run", row["source_run_id"]) if row["source_run_id"] else None
        body = {"experiment_id": experiment, "name": row["name"], "model_type": row["model_type"], "source_run_id": source_run}

        def find() -> Any:
            for batch in self._server.source.rows("logged_models_latest", experiment_ids=(experiment,)):
                for model in batch.to_pylist():
                    if dict(model["tags"] or ()).get(ORIGIN) == origin:
                        return {"row": model}
            return None

        body = {**{k: v for k, v in body.items() if v}, "tags": [{"key": ORIGIN, "value": origin}]}
        made = self._server.create("logged-models", body, find)
        found: Row = made.get("row") or things("logged_models_latest", [made["model"]]).to_pylist()[0]
        return found
