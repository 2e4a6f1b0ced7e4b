"""What every sync does, whatever its target: list the source, find what is not as it was at the last sync, copy that in chunks."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa

from spark_tracking.errors import NotFound, Unavailable
from spark_tracking.mirror import artifacts, points
from spark_tracking.mirror.bookmarks import Bookmark, Bookmarks
from spark_tracking.mirror.fingerprint import digests
from spark_tracking.mirror.result import TO_GO, Progress, SyncResult, Wanted
from spark_tracking.mirror.source import Source
from spark_tracking.readers.reader import Row

_log = logging.getLogger(__name__)
RUNS_AT_ONCE = 500
POINTS_AT_ONCE = 500_000
KIND_OF = {
    "experiments_latest": "experiment",
    "runs_latest": "run",
    "run_metrics_history": "run",
    "logged_models_latest": "logged_model",
    "registered_models_latest": "registered_model",
    "model_versions_latest": "model_version",
}
_UNTOLD = ("update_time",)
"""Columns that are no part of a row's state: a lake's `update_time` is when the row changed there."""


class Copying(ABC):
    """One sync of a source; a target adds how its things are written.

    Attributes:
        result: what was done so far.
    """

    def __init__(self, source: Source, marks: Bookmarks, wanted: Wanted, progress: Progress, target: str) -> None:
        self._source = source
        self._marks = marks
        self._wanted = wanted
        self._progress = progress
        self._models = points.ModelPoints()
        self._listed: dict[str, int] = {}
        self.result = SyncResult(source.reader.name, target, wanted.dry_run)

    @abstractmethod
    def _copy_together(self, rows: list[Row]) -> None:
        """Copy some runs; where that fails for several, each is tried alone."""

    def _unchanged(self, state: bytes | None) -> bool:
        """Whether the source is as it was when all that is asked for now was last copied, so that nothing need be listed."""
        if state is None or self._wanted.verify or not self._same("state", self._wanted.key, state):
            return False
        for kind, tally in self.result.things.items():
            tally.seen = len(self._marks.ids(kind))
        return True

    def _expect(self, kind: str, table: str, rows: int) -> None:
        """Believe a listing of the source, unless it lacks most of what it had: removing that here is not to be undone.

        Raises:
            Unavailable: it shrank to less than half.
        """
        rows += self._source.refused(table)
        marked = self._marks.get("listed", f"{kind} {self._wanted.key}")
        before = self._known_before(kind) if marked is None else marked.points or 0
        if 2 * rows < before and not self._wanted.force:
            things = f"{kind.replace('_', ' ')}s"
            raise Unavailable(
                f"{self._source.reader.name} lists {rows:,} {things} where the last sync saw {before:,}, so nothing more is taken from "
                "it. Does the URI lead to the same server as before, and does that answer in full? If it has really lost them: --force."
            )
        self._listed[kind] = rows

    def _known_before(self, kind: str) -> int:
        """What is known of a listing that nobody has counted yet."""
        if kind in ("registered_model", "model_version"):
            return len(self._marks.ids(kind)) if self._wanted.models == "all" else 0
        return int(bool(self._marks.ids(kind)) and not self._wanted.is_part and not self._wanted.experiments)

    def _note_listings(self) -> None:
        """Tell what was refused, and remember how long the listings were."""
        for (table, id), reason in self._source.reader.refused.items():
            self.result.fail(KIND_OF[table], id, reason)
        for kind, rows in self._listed.items() if not self._wanted.dry_run else ():
            self._marks.put("listed", f"{kind} {self._wanted.key}", Bookmark(b"-", rows, b""))

    def _note_state(self, state: bytes | None) -> None:
        if state is not None and self.result.ok and not self._wanted.dry_run and not self._same("state", self._wanted.key, state):
            self._marks.put("state", self._wanted.key, Bookmark(state, None, b""))

    def _listed_experiments(self) -> list[Row]:
        """The experiments that were asked for.

        Raises:
            NotFound: the source has none of a name or id.
        """
        wanted = self._wanted.experiments
        rows: list[Row] = [row for batch in self._source.rows("experiments_latest") for row in batch.to_pylist()]
        self._expect("experiment", "experiments_latest", len(rows))
        missing = [one for one in wanted if not any(one in (row["name"], row["experiment_id"]) for row in rows)]
        if missing:
            raise NotFound(
                f"{self._source.reader.name} has no experiment '{missing[0]}', by name or id. "
                "spark_tracking.read('experiments_latest') lists them."
            )
        return [row for row in rows if not wanted or row["name"] in wanted or row["experiment_id"] in wanted]

    def _changed_runs(self, experiment_ids: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
        """The rows of runs that are not as they were at the last sync, with their `digest` and number of `points`."""
        if not self._wanted.is_part:
            self._progress(TO_GO, self._source.reader.run_count(experiment_ids) or 0)
        counts = self._source.reader.point_counts()
        options = {"experiment_ids": experiment_ids, "filter": self._wanted.filter, "start_after": self._wanted.since}
        for batch in self._source.rows("runs_latest", **options):
            ids = batch["run_id"].to_pylist()
            numbers = [counts.get(id, 0) for id in ids] if self._source.reader.counts_points else None
            found = digests(batch, _UNTOLD, numbers)
            changed = [i for i, (id, digest) in enumerate(zip(ids, found)) if self._wanted.verify or not self._same("run", id, digest)]
            self.result.things["run"].seen += len(ids)
            self._progress("run", len(ids) - len(changed))
            if changed:
                kept = batch.take(changed).append_column("digest", pa.array([found[i] for i in changed], pa.binary()))
                yield kept.append_column("points", pa.array([numbers[i] if numbers else None for i in changed], pa.int64()))
        self._expect("run", "runs_latest", self.result.things["run"].seen)

    def _same(self, kind: str, id: str, digest: bytes) -> bool:
        return self._marks.is_same(kind, id, digest)

    def _copy_runs(self, batches: Iterable[pa.RecordBatch]) -> None:
        rows: list[Row] = []
        cost = 0
        for batch in batches:
            for row in batch.to_pylist():
                rows.append(row)
                cost += row["points"] or 0
                if len(rows) >= RUNS_AT_ONCE or cost >= POINTS_AT_ONCE:
                    self._copy_chunk(rows)
                    rows, cost = [], 0
        if rows:
            self._copy_chunk(rows)

    def _copy_chunk(self, rows: list[Row]) -> None:
        try:
            self._copy_together(rows)
        except Exception as error:
            if len(rows) == 1:
                self.result.fail("run", rows[0]["run_id"], error)
                self._progress("run", 1)
                return
            _log.info("%d runs together: %s; now one by one", len(rows), error)
            for row in rows:
                self._copy_chunk([row])

    def _points(self, rows: list[Row]) -> dict[str, pa.Table]:
        """The points of those runs that may have any the target lacks, by run.

        Raises:
            NotFound: a run that the listing showed with metrics has none: it was deleted for good meanwhile.
        """
        fetched = [row for row in rows if self._has_news(row, self._marks.get("run", row["run_id"]))]
        arrived = points.by_run(self._source.reader.points_of(fetched))
        for row in fetched:
            if row["run_id"] not in arrived:
                raise NotFound(f"The history of run {row['run_id']} cannot be read; it was deleted at the source since it was listed.")
        return arrived

    def _has_news(self, row: Row, marked: Bookmark | None) -> bool:
        if not row["aggregated_metrics"]:
            return False
        return self._wanted.verify or marked is None or row["points"] is None or marked.points != row["points"]

    def _list_models(self, experiment_ids: tuple[str, ...]) -> list[Row]:
        """The logged models that are not as they were at the last sync."""
        changed: list[Row] = []
        for batch in self._source.rows("logged_models_latest", experiment_ids=experiment_ids):
            for row, digest in zip(batch.to_pylist(), digests(batch)):
                self._models.add(row)
                self.result.things["logged_model"].seen += 1
                if self._wanted.verify or not self._same("logged_model", row["model_id"], digest):
                    changed.append({**row, "digest": digest})
        self._expect("logged_model", "logged_models_latest", self.result.things["logged_model"].seen)
        return changed

    def _complete(self, rows: list[Row]) -> None:
        if self.result.things["logged_model"].seen:
            self._source.reader.complete(rows)

    def _copy_files(self, uri: str | None, target: str | None) -> None:
        if uri and target and not self._wanted.dry_run:
            copied = artifacts.copy(self._source.reader.artifact_uri(uri) or uri, target, self._wanted.verify)
            self.result.files += copied.files
            self.result.bytes += copied.bytes


def chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Lists of at most `size` rows."""
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk


def unspooled(spool: Any) -> Iterator[pa.RecordBatch]:
    """The batches that a file holds; none where it is empty."""
    try:
        yield from pa.ipc.open_stream(spool)
    except pa.ArrowInvalid:
        return  # nothing had changed


def base_of(marked: Bookmark | None) -> bytes:
    """What the last sync saw of a thing, as `registers.marks` packs it."""
    return b"" if marked is None else marked.base
