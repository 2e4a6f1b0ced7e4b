"""From any tracking server into a lake.

What the source lists is compared, row by row, with what the lake remembers of the last sync; only rows that differ are looked at,
and only values that the lake does not have are written. Each run arrives in one record, whole or not at all (a run of very many points:
its values first, then its points). Whatever is interrupted, or done twice or by two at once, ends in the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from spark_tracking.errors import InvalidState, LakeFormatError
from spark_tracking.kinds.catalog import LOGGED_MODEL, RUN
from spark_tracking.kinds.shapes import Registers
from spark_tracking.lake import Entity, Event, Lake, MetricBlock
from spark_tracking.mirror import points
from spark_tracking.mirror.bookmarks import Bookmarks
from spark_tracking.mirror.changes import OWNER, changes, mark, seen, seen_marks
from spark_tracking.mirror.copying import THINGS_AT_ONCE, Copying, Done, chunks
from spark_tracking.mirror.lake_names import LakeNames
from spark_tracking.mirror.result import Progress, Wanted
from spark_tracking.mirror.source import Source
from spark_tracking.readers.reader import Row

POINTS_A_RECORD = 50_000
EVENTS_A_RECORD = 20_000
_PURGED = "It was restored at the source after the lake had purged it; a lake takes no id twice."


class IntoLake(Copying):
    """One sync from a source into a lake."""

    def __init__(self, source: Source, target: str, wanted: Wanted, progress: Progress) -> None:
        self._lake = _open(target, wanted.dry_run)
        root = None if self._lake is None else self._lake.uri.root
        super().__init__(source, Bookmarks(root, source.id, wanted.dry_run), wanted, progress, f"the lake {target}")
        self._experiments: dict[str, str] = {}
        self._homes: dict[str, str] = {}

    def _sync(self) -> None:
        state = self._source.reader.state()
        if not self._unchanged(state):
            self._copy()
            self._note(state)
        if self._lake is not None and not self._wanted.dry_run:
            self._marks.tidy()
            if self.result.wrote:
                self._lake.settle()

    def _copy(self) -> None:
        rows = self._listed_experiments()
        names = LakeNames(self._lake, self._source, self._marks)
        self._commit(names, lambda: names.experiments(rows))
        self._experiments = names.ids
        self._progress("experiment", len(rows))
        if rows:
            ids = tuple(row["experiment_id"] for row in rows)
            changed_models = self._changed_models(ids)
            self._copy_runs(self._changed_runs(ids))
            self._copy_models(changed_models)
        if self._wanted.models != "none":
            models, versions = self._listed_registry()
            home = self._home_of if self._wanted.artifacts == "copy" else lambda source: None
            self._commit(names, lambda: names.registry(models, versions, self._gone, home))

    def _commit(self, names: LakeNames, decide: Callable[[], list[Event]]) -> None:
        """Write what is decided in one conditional commit; it is decided again when another writer was faster."""
        if self._lake is None:
            decide()
        else:
            self._lake.commit(lambda: [] if not decide() or self._wanted.dry_run else names.events)
        for kind, id, done in names.done:
            self._count(kind, id, done)
        for event in names.events:
            if event.field == "purge":
                self.result.things[event.kind].count(False, 1)
                self._marks.drop(event.kind, event.id)

    # -- runs ---------------------------------------------------------------------------------------------------

    def _bring_runs(self, rows: list[Row], arrived: Mapping[str, pa.Table]) -> Sequence[Done | Exception | None]:
        there = {} if self._lake is None else self._lake.get_many("run", [row["run_id"] for row in rows])
        batch = _Batch(None if self._wanted.dry_run else self._lake)
        done: list[Done | Exception | None] = []
        for row in rows:
            id, known, marked = row["run_id"], there.get(row["run_id"]), self._marks.get("run", row["run_id"])
            if known is None and marked is not None:  # deleted for good in the lake, which stands
                was_in_trash = mark("attr", "lifecycle_stage", "deleted") in seen_marks(marked)
                done.append(InvalidState(_PURGED) if was_in_trash and row["lifecycle_stage"] == "active" else None)
                continue
            if known is not None and known.items("sync").get("source") != self._source.id:
                done.append(InvalidState("The lake has a run of this id that did not come from this source; it stays as it is."))
                continue
            registers = self._registers(RUN.registers(row), row, row["run_id"])
            events = list(changes("run", id, registers, known, marked))
            blocks = self._blocks(row, arrived.get(id), known)
            self._copy_files(row["artifact_uri"], registers["attr", "artifact_uri"])
            batch.add(events, blocks)
            bookmark = seen(registers, row["digest"], row["points"])
            done.append(Done(bookmark, known is None, len(events), sum(len(block.names) for block in blocks)))
        batch.write()
        return done

    def _blocks(self, row: Row, arrived: pa.Table | None, there: Entity | None) -> list[MetricBlock]:
        if arrived is None:
            return []
        known = set(self._models.of(row["run_id"]))
        if there is not None and self._lake is not None:
            known = known | points.keys(self._lake.metric_history(row["run_id"]))
        return points.of_run(row["run_id"], self._experiments[row["experiment_id"]], arrived, known)

    def _registers(self, registers: Registers, row: Row, path: str) -> Registers:
        """Those of a run or logged model as the lake has them; its files lie below `path` of the experiment."""
        experiment = self._experiments[row["experiment_id"]]
        uri: str | None = row["artifact_uri"]
        if self._lake is None or (uri and self._wanted.artifacts == "reference"):
            uri = self._source.reader.artifact_uri(uri)
        else:
            uri = f"{self._lake.uri.artifact_root}/{experiment}/{path}/artifacts"
        return {**registers, ("attr", "experiment_id"): experiment, ("attr", "artifact_uri"): uri, OWNER: self._source.id}

    # -- logged models ------------------------------------------------------------------------------------------

    def _with_copies(self, models: list[Row]) -> Iterator[tuple[Row, Entity | None]]:
        for rows in chunks(models, THINGS_AT_ONCE):
            there: dict[str, Entity] = {}
            if self._lake is not None:
                there = self._lake.get_many("logged_model", [row["model_id"] for row in rows])
                runs = {p["run_id"] for row in rows for p in row["metrics"] or ()} | {row["source_run_id"] for row in rows}
                found = self._lake.get_many("run", runs - {None})
                self._homes = {id: run.attr("experiment_id") or "" for id, run in found.items()}
            yield from ((row, there.get(row["model_id"])) for row in rows)

    def _bring_model(self, row: Row, copy: Entity | None) -> Done | None:
        id, marked = row["model_id"], self._marks.get("logged_model", row["model_id"])
        if copy is None and marked is not None:
            return None  # deleted for good in the lake, which stands
        if self._wanted.is_part and row["source_run_id"] and row["source_run_id"] not in self._homes:
            return None  # it belongs to a run that was not asked for
        if copy is not None and copy.items("sync").get("source") != self._source.id:
            raise InvalidState("The lake has a model of this id that did not come from this source; it stays.")
        registers = self._registers(LOGGED_MODEL.registers(row), row, f"models/{id}")
        events = list(changes("logged_model", id, registers, copy, marked))
        blocks = list(points.of_model({**row, "experiment_id": self._experiments[row["experiment_id"]]}, copy, self._homes))
        self._copy_files(row["artifact_uri"], registers["attr", "artifact_uri"])
        if self._lake is not None and not self._wanted.dry_run and (events or blocks):
            self._lake.write(events, blocks)
        return Done(seen(registers, row["digest"]), copy is None, len(events), sum(len(block.names) for block in blocks))

    def _home_of(self, source: str) -> str | None:
        """Where the files of a version are, by the run or logged model that its `source` names, if the lake has that."""
        scheme, _, rest = source.partition(":/")
        id, _, path = rest.lstrip("/").partition("/")
        kind = {"runs": "run", "models": "logged_model"}.get(scheme)
        home = self._lake.get(kind, id, points=False) if kind and self._lake is not None else None
        return None if home is None else f"{home.attr('artifact_uri')}/{path}".rstrip("/")


class _Batch:
    """Runs on their way into a lake, as few records as are sensible, each run's events and points in the same one."""

    def __init__(self, lake: Lake | None) -> None:
        self._lake = lake
        self._events: list[Event] = []
        self._blocks: list[MetricBlock] = []
        self._points = 0

    def add(self, events: Sequence[Event], blocks: Sequence[MetricBlock]) -> None:
        """Take a run."""
        self._events += events
        for block in blocks:
            while len(block.names) > POINTS_A_RECORD:
                head, block = _part(block, 0, POINTS_A_RECORD), _part(block, POINTS_A_RECORD, None)
                self._blocks.append(head)
                self.write()
            self._blocks.append(block)
            self._points += len(block.names)
        if self._points >= POINTS_A_RECORD or len(self._events) >= EVENTS_A_RECORD:
            self.write()

    def write(self) -> None:
        """Store what was taken."""
        if self._lake is not None and (self._events or self._blocks):
            self._lake.write(self._events, self._blocks)
        self._events, self._blocks, self._points = [], [], 0


def _part(block: MetricBlock, start: int, end: int | None) -> MetricBlock:
    columns = {name: getattr(block, name)[start:end] for name in ("names", "values", "times", "steps")}
    return replace(block, **columns)


def _open(target: str, dry_run: bool) -> Lake | None:
    try:
        return Lake.open(target, create=not dry_run)
    except LakeFormatError:
        if dry_run:
            return None  # a lake that is not there yet
        raise
