"""From any tracking server into a lake.

What the source lists is compared, row by row, with what the lake remembers of the last sync; only rows that differ are looked at,
and only values that the lake does not have are written. Each run arrives in one record, whole or not at all (a run of very many points:
its values first, then its points). Whatever is interrupted, or done twice or by two at once, ends in the same state.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from spark_tracking.errors import LakeFormatError
from spark_tracking.kinds.catalog import LOGGED_MODEL, RUN
from spark_tracking.kinds.shapes import Registers
from spark_tracking.lake import Entity, Event, Lake, MetricBlock
from spark_tracking.mirror import points
from spark_tracking.mirror.bookmarks import Bookmark, Bookmarks
from spark_tracking.mirror.copying import RUNS_AT_ONCE, Copying, base_of, chunks
from spark_tracking.mirror.experiments import Experiments
from spark_tracking.mirror.registers import OWNER, Row, changes, mark, marks, split_marks
from spark_tracking.mirror.registry import Registry
from spark_tracking.mirror.result import Progress, SyncResult, Wanted
from spark_tracking.mirror.source import Source

POINTS_A_RECORD = 50_000
EVENTS_A_RECORD = 20_000


class IntoLake(Copying):
    """One sync from a source into a lake."""

    def __init__(self, source: Source, target: str, wanted: Wanted, progress: Progress) -> None:
        self._lake = _open(target, wanted.dry_run)
        root = None if self._lake is None else self._lake.uri.root
        super().__init__(source, Bookmarks(root, source.id, wanted.dry_run), wanted, progress, f"the lake {target}")
        self._experiments = Experiments(self._lake, source)

    def sync(self) -> SyncResult:
        """Do it."""
        begin = time.monotonic()
        state = self._source.reader.state()
        if not self._unchanged(state):
            self._copy()
            self._note_listings()
            self._note_state(state)
        if self._lake is not None and not self._wanted.dry_run:
            self._marks.tidy()
            if self.result.wrote:
                self._lake.settle()
        self.result.seconds = time.monotonic() - begin
        return self.result

    def _copy(self) -> None:
        rows = self._copy_experiments()
        if rows:
            ids = tuple(row["experiment_id"] for row in rows)
            changed_models = self._list_models(ids)
            self._copy_runs(self._changed_runs(ids))
            self._copy_models(changed_models)
        if self._wanted.models != "none":
            Registry(self._lake, self._source, self._marks, self._wanted, self.result, self._expect).sync()

    # -- experiments --------------------------------------------------------------------------------------------

    def _copy_experiments(self) -> list[Row]:
        rows = self._listed_experiments()
        bases = {row["experiment_id"]: base_of(self._marks.get("experiment", row["experiment_id"])) for row in rows}
        events: list[Event] = []

        def decide() -> list[Event]:
            events[:] = self._experiments.decide(rows, bases)
            return [] if self._wanted.dry_run else events

        if self._lake is None:
            decide()
        else:
            self._lake.commit(decide)
        tally = self.result.things["experiment"]
        tally.seen, tally.new, tally.written = len(rows), len(self._experiments.new), len(events)
        written = {event.id for event in events}
        tally.changed = sum(self._experiments.ids[row["experiment_id"]] in written for row in rows) - tally.new
        for id, base in self._experiments.bases.items():
            if base != bases.get(id):
                self._marks.put("experiment", id, Bookmark(b"-", None, base))
        self._progress("experiment", len(rows))
        return rows

    # -- runs ---------------------------------------------------------------------------------------------------

    def _copy_together(self, rows: list[Row]) -> None:
        self._complete(rows)
        there = {} if self._lake is None else self._lake.get_many("run", [row["run_id"] for row in rows])
        marked = {row["run_id"]: self._marks.get("run", row["run_id"]) for row in rows}
        arrived = self._points(rows)
        batch = _Batch(None if self._wanted.dry_run else self._lake)
        done: list[tuple[Row, bytes, bool, int, int]] = []
        for row in rows:
            id, known = row["run_id"], there.get(row["run_id"])
            if known is None and marked[id] is not None:
                if row["lifecycle_stage"] == "active" and mark("attr", "lifecycle_stage", "deleted") in split_marks(base_of(marked[id])):
                    self.result.fail("run", id, "It was restored at the source after the lake had purged it; a lake takes no id twice.")
                continue  # deleted for good in the lake, which stands
            if known is not None and known.items("sync").get("source") != self._source.id:
                self.result.fail("run", id, "The lake has a run of this id that did not come from this source; it stays as it is.")
                continue
            registers = self._run_registers(row)
            events = list(changes("run", id, registers, known, split_marks(base_of(marked[id]))))
            blocks = self._blocks(row, arrived.get(id), known)
            if self._wanted.artifacts == "copy":
                self._copy_files(row["artifact_uri"], registers["attr", "artifact_uri"])
            batch.add(events, blocks)
            done.append((row, marks(registers), known is None, len(events), sum(len(b.names) for b in blocks)))
        batch.write()
        self._count_runs(done, len(rows))

    def _count_runs(self, done: list[tuple[Row, bytes, bool, int, int]], seen: int) -> None:
        tally = self.result.things["run"]
        for row, base, new, events, logged in done:
            tally.new += new
            tally.changed += not new and bool(events or logged)
            tally.written += events
            self.result.points += logged
            self._marks.put("run", row["run_id"], Bookmark(row["digest"], row["points"], base))
        self._progress("run", seen)

    def _blocks(self, row: Row, arrived: Any, there: Entity | None) -> list[MetricBlock]:
        if arrived is None:
            return []
        known = set(self._models.of(row["run_id"]))
        if there is not None and self._lake is not None:
            known = known | points.keys(self._lake.metric_history(row["run_id"]))
        return points.of_run(row["run_id"], self._experiments.ids[row["experiment_id"]], arrived, known)

    def _run_registers(self, row: Row) -> Registers:
        experiment = self._experiments.ids[row["experiment_id"]]
        uri = self._target_uri(row["artifact_uri"], f"{experiment}/{row['run_id']}/artifacts")
        return {**RUN.registers(row), ("attr", "experiment_id"): experiment, ("attr", "artifact_uri"): uri, OWNER: self._source.id}

    # -- logged models ------------------------------------------------------------------------------------------

    def _copy_models(self, rows: list[Row]) -> None:
        tally = self.result.things["logged_model"]
        for chunk in chunks(rows, RUNS_AT_ONCE):
            there = {} if self._lake is None else self._lake.get_many("logged_model", [row["model_id"] for row in chunk])
            runs = {p["run_id"] for row in chunk for p in row["metrics"] or () if p["run_id"]}
            found = {} if self._lake is None else self._lake.get_many("run", runs)
            homes = {id: e.attr("experiment_id") or "" for id, e in found.items()}
            for row in chunk:
                id, known, marked = row["model_id"], there.get(row["model_id"]), self._marks.get("logged_model", row["model_id"])
                if (known is None and marked is not None) or self._left_out(row, found):
                    continue
                if known is not None and known.items("sync").get("source") != self._source.id:
                    self.result.fail("logged_model", id, "The lake has a model of this id that did not come from this source; it stays.")
                    continue
                try:
                    new, written = known is None, self._copy_model(row, known, marked, homes)
                except Exception as error:
                    self.result.fail("logged_model", id, error)
                    continue
                tally.new += new
                tally.changed += not new and bool(written)
                tally.written += written
            self._progress("logged_model", len(chunk))

    def _left_out(self, row: Row, found: dict[str, Entity]) -> bool:
        """Whether a model belongs to a run that was not asked for."""
        run_id = row["source_run_id"]
        if not self._wanted.is_part or not run_id or run_id in found:
            return False
        return self._lake is None or self._lake.get("run", run_id, points=False) is None

    def _copy_model(self, row: Row, known: Entity | None, marked: Bookmark | None, homes: dict[str, str]) -> int:
        id = row["model_id"]
        experiment = self._experiments.ids[row["experiment_id"]]
        uri = self._target_uri(row["artifact_uri"], f"{experiment}/models/{id}/artifacts")
        own = {("attr", "experiment_id"): experiment, ("attr", "artifact_uri"): uri, OWNER: self._source.id}
        registers = {**LOGGED_MODEL.registers(row), **own}
        events = list(changes("logged_model", id, registers, known, split_marks(base_of(marked))))
        blocks = list(points.of_model({**row, "experiment_id": experiment}, known, homes))
        if self._wanted.artifacts == "copy":
            self._copy_files(row["artifact_uri"], uri)
        if self._lake is not None and not self._wanted.dry_run and (events or blocks):
            self._lake.write(events, blocks)
        self.result.points += sum(len(block.names) for block in blocks)
        self._marks.put("logged_model", id, Bookmark(row["digest"], None, marks(registers)))
        return len(events)

    # -- the rest -----------------------------------------------------------------------------------------------

    def _target_uri(self, uri: str | None, path: str) -> str | None:
        if self._lake is None or (uri and self._wanted.artifacts == "reference"):
            return self._source.reader.artifact_uri(uri)
        return f"{self._lake.uri.artifact_root}/{path}"


class _Batch:
    """Runs on their way into a lake, as few records as are sensible, each run's events and points in the same one."""

    def __init__(self, lake: Lake | None) -> None:
        self._lake = lake
        self._events: list[Event] = []
        self._blocks: list[MetricBlock] = []
        self._points = 0

    def add(self, events: Sequence[Event], blocks: Sequence[MetricBlock]) -> None:
        """Take a run."""
        for block in blocks:
            while len(block.names) > POINTS_A_RECORD:
                head, block = _cut(block)
                self._events += events
                events = ()
                self._blocks.append(head)
                self.write()
            self._blocks.append(block)
            self._points += len(block.names)
        self._events += events
        if self._points >= POINTS_A_RECORD or len(self._events) >= EVENTS_A_RECORD:
            self.write()

    def write(self) -> None:
        """Store what was taken."""
        if self._lake is not None and (self._events or self._blocks):
            self._lake.write(self._events, self._blocks)
        self._events, self._blocks, self._points = [], [], 0


def _cut(block: MetricBlock) -> tuple[MetricBlock, MetricBlock]:
    def part(start: int, end: int | None) -> MetricBlock:
        columns = (block.names, block.values, block.times, block.steps)
        return MetricBlock(block.run_id, block.experiment_id, *(column[start:end] for column in columns))  # type: ignore[arg-type]

    return part(0, POINTS_A_RECORD), part(POINTS_A_RECORD, None)


def _open(target: str, dry_run: bool) -> Lake | None:
    try:
        return Lake.open(target, create=not dry_run)
    except LakeFormatError:
        if dry_run:
            return None  # a lake that is not there yet
        raise
