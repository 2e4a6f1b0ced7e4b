"""What every sync does, whatever its target: list the source, find what is not as it was at the last sync, copy that in chunks."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from spark_tracking.errors import NotFound, Unavailable
from spark_tracking.kinds.catalog import KINDS
from spark_tracking.kinds.shapes import version_id
from spark_tracking.mirror import artifacts, points
from spark_tracking.mirror.bookmarks import Bookmark, Bookmarks
from spark_tracking.mirror.fingerprint import digests
from spark_tracking.mirror.result import TO_GO, Progress, SyncResult, Wanted
from spark_tracking.mirror.source import Source
from spark_tracking.readers.reader import Row

_log = logging.getLogger(__name__)
THINGS_AT_ONCE = 500
POINTS_AT_ONCE = 500_000
EXPERIMENT, RUN, LOGGED_MODEL, MODEL, VERSION = "experiment", "run", "logged_model", "registered_model", "model_version"
TABLES = {kind.name: kind.table for kind in KINDS}
LOCK = "spark-tracking sync "
"""How the registered models begin by which syncs into a server exclude each other."""
_KIND_OF = {kind.table: kind.name for kind in KINDS} | {"run_metrics_history": RUN}
_UNTOLD = ("update_time",)
"""Columns that are no part of a row's state: a lake's `update_time` is when the row changed there."""
_PROMPTS = "tags.`mlflow.prompt.is_prompt` = 'true'"


class Done(NamedTuple):
    """What was done for one thing: what is to be remembered of it, whether it is new, how many values and points were written."""

    bookmark: Bookmark
    is_new: bool
    written: int
    points: int = 0


class Copying(ABC):
    """One sync of a source; a target adds how its things are written."""

    def __init__(self, source: Source, marks: Bookmarks, wanted: Wanted, progress: Progress, target: str) -> None:
        self._source = source
        self._marks = marks
        self._wanted = wanted
        self._progress = progress
        self._models = points.ModelPoints()
        self._listed: dict[str, int] = {}
        self.result = SyncResult(source.reader.name, target, wanted.dry_run)

    def sync(self) -> SyncResult:
        """Do it."""
        begin = time.monotonic()
        self._sync()
        self.result.seconds = time.monotonic() - begin
        return self.result

    @abstractmethod
    def _sync(self) -> None:
        """All of it."""

    @abstractmethod
    def _bring_runs(self, rows: list[Row], arrived: Mapping[str, pa.Table]) -> Sequence[Done | Exception | None]:
        """Copy some runs with their new points; None for one that stays as it is at the target."""

    @abstractmethod
    def _with_copies(self, models: list[Row]) -> Iterator[tuple[Row, Any]]:
        """Logged models, each with its copy at the target, if there is one."""

    @abstractmethod
    def _bring_model(self, row: Row, copy: Any) -> Done | None:
        """Copy a logged model; None for one that stays as it is at the target."""

    # -- listings -----------------------------------------------------------------------------------------------

    def _unchanged(self, state: bytes | None) -> bool:
        """Whether the source is as it was when all that is asked for now was last copied, so that nothing need be listed."""
        if state is None or self._wanted.verify or not self._marks.is_same("state", self._wanted.key, state):
            return False
        for kind, tally in self.result.things.items():
            tally.seen = len(self._marks.ids(kind))
        return True

    def _expect(self, kind: str, rows: int) -> None:
        """Believe a listing of the source, unless it lacks most of what it had: removing that here is not to be undone.

        Raises:
            Unavailable: it shrank to less than half.
        """
        rows += self._source.refused(TABLES[kind])
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
        if kind in (MODEL, VERSION):
            return len(self._marks.ids(kind)) if self._wanted.models == "all" else 0
        return int(bool(self._marks.ids(kind)) and not self._wanted.is_part and not self._wanted.experiments)

    def _note(self, state: bytes | None) -> None:
        """Tell what was refused, and remember how long the listings were, and the source's state where all of it was copied."""
        for (table, id), reason in self._source.reader.refused.items():
            self.result.fail(_KIND_OF[table], id, reason)
        for kind, rows in self._listed.items() if not self._wanted.dry_run else ():
            self._marks.put("listed", f"{kind} {self._wanted.key}", Bookmark(b"-", rows, b""))
        if state is None or not self.result.ok or self._wanted.dry_run or self._marks.is_same("state", self._wanted.key, state):
            return
        self._marks.put("state", self._wanted.key, Bookmark(state, None, b""))

    def _listed_experiments(self) -> list[Row]:
        """The experiments that were asked for.

        Raises:
            NotFound: the source has none of a name or id.
        """
        wanted = self._wanted.experiments
        rows = [row for batch in self._source.rows(TABLES[EXPERIMENT]) for row in batch.to_pylist()]
        self._expect(EXPERIMENT, len(rows))
        missing = [one for one in wanted if not any(one in (row["name"], row["experiment_id"]) for row in rows)]
        if missing:
            raise NotFound(
                f"{self._source.reader.name} has no experiment '{missing[0]}', by name or id. "
                "spark_tracking.read('experiments_latest') lists them."
            )
        found = [row for row in rows if not wanted or row["name"] in wanted or row["experiment_id"] in wanted]
        self.result.things[EXPERIMENT].seen = len(found)
        return found

    def _listed_registry(self) -> tuple[dict[str, Row], dict[str, Row]]:
        """The registered models and their versions that were asked for, by id; what lacks may be removed, so both must be believed.

        Raises:
            Unavailable: one of the listings lacks most of what it had.
        """
        models, versions = (listed(self._source, self._wanted, kind) for kind in (MODEL, VERSION))
        for kind, rows in ((MODEL, models), (VERSION, versions)):
            self._expect(kind, len(rows))
            self.result.things[kind].seen = len(rows)
        return models, versions

    def _gone(self, kind: str, left: Iterable[str]) -> set[str]:
        """What was copied of a registry, which has no trash, and the source has no more. What is refused is not gone."""
        if self._wanted.models != "all" or self._source.refused(TABLES[MODEL], TABLES[VERSION]):
            return set()
        return self._marks.ids(kind).difference(left)

    def _changed_runs(self, experiment_ids: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
        """The rows of runs that are not as they were at the last sync, with their `digest` and number of `points`."""
        reader, tally = self._source.reader, self.result.things[RUN]
        if not self._wanted.is_part:
            self._progress(TO_GO, reader.run_count(experiment_ids) or 0)
        counts = reader.point_counts()
        options = {"experiment_ids": experiment_ids, "filter": self._wanted.filter, "start_after": self._wanted.since}
        for batch in self._source.rows(TABLES[RUN], **options):
            ids = batch["run_id"].to_pylist()
            numbers = [counts.get(id, 0) for id in ids] if reader.counts_points else None
            found = digests(batch, _UNTOLD, numbers)
            changed = [i for i, (id, digest) in enumerate(zip(ids, found)) if self._is_news(RUN, id, digest)]
            tally.seen += len(ids)
            self._progress(RUN, len(ids) - len(changed))
            if changed:
                kept = batch.take(changed).append_column("digest", pa.array([found[i] for i in changed], pa.binary()))
                yield kept.append_column("points", pa.array([numbers[i] if numbers else None for i in changed], pa.int64()))
        self._expect(RUN, tally.seen)

    def _changed_models(self, experiment_ids: tuple[str, ...]) -> list[Row]:
        """The logged models that are not as they were at the last sync."""
        changed: list[Row] = []
        tally = self.result.things[LOGGED_MODEL]
        for batch in self._source.rows(TABLES[LOGGED_MODEL], experiment_ids=experiment_ids):
            for row, digest in zip(batch.to_pylist(), digests(batch)):
                self._models.add(row)
                tally.seen += 1
                if self._is_news(LOGGED_MODEL, row["model_id"], digest):
                    changed.append({**row, "digest": digest})
        self._expect(LOGGED_MODEL, tally.seen)
        return changed

    def _is_news(self, kind: str, id: str, digest: bytes) -> bool:
        return self._wanted.verify or not self._marks.is_same(kind, id, digest)

    # -- copying ------------------------------------------------------------------------------------------------

    def _copy_runs(self, batches: Iterable[pa.RecordBatch]) -> None:
        rows: list[Row] = []
        cost = 0
        for batch in batches:
            for row in batch.to_pylist():
                rows.append(row)
                cost += row["points"] or 0
                if len(rows) >= THINGS_AT_ONCE or cost >= POINTS_AT_ONCE:
                    self._copy_chunk(rows)
                    rows, cost = [], 0
        if rows:
            self._copy_chunk(rows)

    def _copy_chunk(self, rows: list[Row]) -> None:
        """Copy some runs together; where that fails, each is tried alone."""
        try:
            due = self._due(rows)
            if self.result.things[LOGGED_MODEL].seen:
                self._source.reader.complete(due)
            done = self._bring_runs(due, self._points(due))
        except Exception as error:
            if len(rows) == 1:
                self.result.fail(RUN, rows[0]["run_id"], error)
                self._progress(RUN, 1)
                return
            _log.info("%d runs together: %s; now one by one", len(rows), error)
            for row in rows:
                self._copy_chunk([row])
            return
        for row, what in zip(due, done):
            self._count(RUN, row["run_id"], what)
        self._progress(RUN, len(rows))

    def _due(self, rows: list[Row]) -> list[Row]:
        """Those of some changed runs that are to be copied now."""
        return rows

    def _copy_models(self, rows: list[Row]) -> None:
        for row, copy in self._with_copies(rows):
            try:
                done: Done | Exception | None = self._bring_model(row, copy)
            except Exception as error:
                done = error
            self._count(LOGGED_MODEL, row["model_id"], done)
            self._progress(LOGGED_MODEL, 1)

    def _count(self, kind: str, id: str, done: Done | Exception | None) -> None:
        """Tell, and remember, what became of a thing."""
        if isinstance(done, Exception):
            self.result.fail(kind, id, done)
        elif done is not None:
            self.result.things[kind].count(done.is_new, done.written, done.points)
            self.result.points += done.points
            self._marks.put(kind, id, done.bookmark)

    def _points(self, rows: list[Row]) -> dict[str, pa.Table]:
        """The points of those runs that may have any the target lacks, by run.

        Raises:
            NotFound: a run that the listing showed with metrics has none: it was deleted for good meanwhile.
        """
        fetched = [row for row in rows if self._has_news(row, self._marks.get(RUN, row["run_id"]))]
        arrived = points.by_run(self._source.reader.points_of(fetched)) if fetched else {}
        for row in fetched:
            if row["run_id"] not in arrived:
                raise NotFound(f"The history of run {row['run_id']} cannot be read; it was deleted at the source since it was listed.")
        return arrived

    def _has_news(self, row: Row, marked: Bookmark | None) -> bool:
        if not row["aggregated_metrics"]:
            return False
        return self._wanted.verify or marked is None or row["points"] is None or marked.points != row["points"]

    def _copy_files(self, uri: str | None, target: str | None) -> None:
        if uri and target and self._wanted.artifacts == "copy" and not self._wanted.dry_run:
            copied = artifacts.copy(self._source.reader.artifact_uri(uri) or uri, target, self._wanted.verify)
            self.result.files += copied.files
            self.result.bytes += copied.bytes


def listed(source: Source, wanted: Wanted, kind: str) -> dict[str, Row]:
    """The registered models, or versions, that are wanted, by id; prompts among them, which MLflow's searches leave out unless asked."""
    found: dict[str, Row] = {}
    for filter in (None, _PROMPTS):
        for batch in source.rows(TABLES[kind], filter=filter):
            for row in batch.to_pylist():
                name = row["name"]
                if (wanted.models == "all" or name in wanted.models) and not name.startswith(LOCK):
                    found[version_id(name, row["version"]) if kind == VERSION else name] = row
    return found


def chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Lists of at most `size` rows."""
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk
