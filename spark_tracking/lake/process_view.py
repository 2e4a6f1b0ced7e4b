"""What one process knows of the lake: always complete, after a poll, and cheap to keep so.

State is a set, so there is nothing to undo: a poll only adds. What the journals and the logs' tails say of an entity is
kept as a *partial* until a derived table covers it; an entity that was asked for is kept whole, and every later piece of
news is folded into it.

A poll looks at the journals first, the derived tables second and the logs last. Rows move in this order only, so what one
look misses, the next one finds.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import pyarrow.compute as pc

from spark_tracking.delta import storage
from spark_tracking.delta.commit_log import Commit, Gone
from spark_tracking.delta.table import Table
from spark_tracking.kinds.state import Entity, Event, Stamp
from spark_tracking.lake.derived_table import DerivedTable
from spark_tracking.lake.journal import POINTS, writer_of
from spark_tracking.lake.journal_record import Clock, PackedBlock, Record
from spark_tracking.lake.journals import AnyJournal
from spark_tracking.lake.log_rows import among, events_of, fold_blocks, fold_metric_rows, model_points
from spark_tracking.lake.replay import fold_logs_of
from spark_tracking.lake.tables import DERIVED, EVENTS_LOG, METRICS_LOG

Key = tuple[str, str]
WHOLE_KEPT = 3000
"""Whole entities that a process keeps, some 20 KB each."""
WRITERS_PATIENCE = 20.0
"""Seconds for which a process that only writes puts off looking for newer derived tables."""
FAR_BEHIND = 100
"""Versions of a log that a process catches up with one by one; behind more, it begins anew from the derived tables."""
LEFT_OUT_BYTES = 32 * 1024 * 1024
"""Metric points in journals that a process that only writes may have left unread; behind more, it begins anew, too.

They take some 25 ms to read, a new beginning some 50."""
UNFOLDED_BYTES = 1024 * 1024
"""Points of a whole entity that nobody asked for are let go beyond this size: a mere writer stays small and folds nothing."""


@dataclass(slots=True)
class Partial:
    """The news of one entity that its derived table may not have yet.

    Attributes:
        entity: the news, folded.
        events, points: for each source (a segment, or a log by name), the position up to which this holds its news.
        blocks: metric points of journals as (segment, position, points); they wait until somebody looks.
        folded: how many of the blocks are in `entity`.
        created: the source and position of its creation, if that is among the news.
        stored: the derived table covers the creation: if there is no row, the thing was purged.
    """

    entity: Entity
    events: dict[str, int] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)
    blocks: list[tuple[str, int, PackedBlock]] = field(default_factory=list)
    folded: int = 0
    created: tuple[str, int] | None = None
    stored: bool = False

    def fold(self) -> Entity:
        """The news with all points folded in."""
        fold_blocks(self.entity, [block for _, _, block in self.blocks[self.folded :]])
        self.folded = len(self.blocks)
        return self.entity

    def drop(self, covered: dict[str, int]) -> None:
        """Let go of the points up to these positions. What was folded of them may stay: it is true."""
        kept = [block[1] > covered.get(block[0], -1) for block in self.blocks]
        self.folded = sum(kept[: self.folded])
        self.blocks = [block for block, keep in zip(self.blocks, kept) if keep]


@dataclass(slots=True)
class Whole:
    """An entity with everything known of it; points wait in `unfolded` until somebody looks.

    Attributes:
        has_points: whether all points are in it or wait; else who wants them loads it anew.
    """

    entity: Entity
    unfolded: list[PackedBlock] = field(default_factory=list)
    waiting: int = 0
    has_points: bool = True

    def add(self, block: PackedBlock) -> None:
        if not self.has_points:
            return
        self.unfolded.append(block)
        self.waiting += len(block)
        if self.waiting > UNFOLDED_BYTES:
            self.has_points = False
            self.unfolded.clear()

    def fold(self) -> Entity:
        fold_blocks(self.entity, self.unfolded)
        self.unfolded.clear()
        self.waiting = 0
        return self.entity


class View:
    """The process's knowledge; the caller serialises access.

    Attributes:
        tail: partials by (kind, id).
        bases: the derived tables by kind.
    """

    def __init__(self, root: str, journal: AnyJournal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self.events = Table(root, EVENTS_LOG)
        self.metrics = Table(root, METRICS_LOG)
        self.logs = {EVENTS_LOG.name: self.events, METRICS_LOG.name: self.metrics}
        # runs first: the others are looked at later than the table that vouches for them
        kinds = sorted(DERIVED, key=lambda spec: spec.kind != "run")
        self.bases = {spec.kind: DerivedTable(root, spec) for spec in kinds}
        self.tail: dict[Key, Partial] = {}
        self._whole: OrderedDict[Key, Whole] = OrderedDict()
        self._commits: dict[str, list[Commit]] = {name: [] for name in self.logs}
        self._taken: dict[str, dict[str, int]] = {name: {} for name in self.logs}  # by log and segment, what the log has
        self._only_writes = False  # the last poll left points out
        self._patience, self._bases_seen = storage.of(root).patience, 0.0
        self.load()

    def load(self) -> None:
        """Begin anew from what is stored."""
        self.tail.clear()
        self._whole.clear()
        for log in self.logs.values():
            log.seen = log.update()
            self._clock.observe(log.max_of("hlc"))
        self._follow_segments()
        self._read_journals()
        for base in self.bases.values():
            base.update()
        for name, log in self.logs.items():
            self._fold_log(log, min(self.watermark(kind, name) for kind in self.bases), log.seen)
        self._read_logs()
        self._forget_covered()

    def watermark(self, kind: str, log: str) -> int:
        """The version up to which the kind's table covers a log; -1 for nothing yet.

        A refresh ends with runs_latest (see `lake.refresh`), so what that one covers the others do, too.
        """
        return max(self.bases[kind].watermarks[log], self.bases["run"].watermarks[log])

    def _follow_segments(self) -> None:
        """Begin reading each journal behind what the logs have of it, also where it had been read further before."""
        self._journal.forget()
        covered = {name: min(self.watermark(kind, name) for kind in self.bases) for name in self.logs}
        for name, log in self.logs.items():
            self._commits[name] = [commit for commit in log.commits.after(covered[name]) if commit.version <= log.seen]
        later = {name: {segment for commit in commits for segment in commit.transactions} for name, commits in self._commits.items()}
        for segment in self._journal.segments():
            flushed = {log.spec.name: log.transaction(segment) or 0 for log in self.logs.values()}
            self._journal.follow(segment, flushed[METRICS_LOG.name] if segment.endswith(POINTS) else min(flushed.values()))
            for name, position in flushed.items():
                self._taken[name][segment] = position
                if segment not in later[name]:
                    self._commits[name].append(Commit(covered[name], {segment: position}, [], []))

    def poll(self, points: bool = True) -> None:
        """See everything that any process had acknowledged when this was called.

        Args:
            points: metric points, too, and move on to newer derived tables and forget what they cover. A writer need not do so each time.
        """
        if points and self._only_writes and self._journal.left_out() > LEFT_OUT_BYTES:
            raise Gone("more points were left out than a new beginning costs")
        self._only_writes = not points
        self._read_journals(points)
        due = points or time.monotonic() - self._bases_seen > WRITERS_PATIENCE
        moved = due and self._update_bases()
        self._read_logs(points)
        if moved:
            self._forget_covered()

    def get(self, kind: str, id: str, points: bool = True) -> Entity | None:
        """The entity as of the last poll, purged ones and unborn ones left out. Not to be kept: it goes on changing.

        Args:
            points: whether metrics must be up to date.
        """
        whole = self._whole.get((kind, id))
        if whole is None or (points and not whole.has_points):
            whole = self._load_whole(kind, [id]).get(id)
        if whole is None:
            return None
        self._whole.move_to_end((kind, id))
        entity = whole.fold() if points else whole.entity
        return entity if entity.exists else None

    def get_many(self, kind: str, ids: Collection[str]) -> dict[str, Entity]:
        """The same for many, with one look into the table."""
        wholes = {id: whole for id in ids if (whole := self._whole.get((kind, id))) and whole.has_points}
        wholes |= self._load_whole(kind, [id for id in ids if id not in wholes])  # which may forget some of the former
        return {id: entity for id in ids if id in wholes and (entity := wholes[id].fold()).exists}

    def ids(self, kind: str) -> list[str]:
        """The ids of all rows of the kind, stored or news."""
        base = self.bases[kind]
        stored = base.select(None, [base.spec.key])[base.spec.key].to_pylist()
        return sorted({*stored, *self.touched(kind)})

    def touched(self, kind: str) -> list[str]:
        """The ids of the kind whose rows in the derived table may be old."""
        return [id for k, id in self.tail if k == kind]

    def tail_blocks(self, run_id: str) -> list[tuple[str, int, PackedBlock]]:
        """The run's points that may not be in the metrics log yet, as (segment, position, points)."""
        partial = self.tail.get(("run", run_id))
        return partial.blocks if partial else []

    def purging(self, kind: str, ids: Collection[str]) -> list[Event]:
        """The events that delete things for good; of runs, also their points from the logged models that have some."""
        events = [Event(kind, id, "purge", "", None) for id in ids]
        if kind != "run" or not ids:
            return events
        self.metrics.update()
        where = among("run_id", list(ids)) & pc.field("model_id").is_valid()
        stored = self.metrics.select(where, ["model_id", "run_id"]).group_by(["model_id", "run_id"]).aggregate([])
        measured = {(block.model_id, id) for id in ids for *_, block in self.tail_blocks(id) if block.model_id}
        measured.update(zip(stored["model_id"].to_pylist(), stored["run_id"].to_pylist()))
        return events + [Event("logged_model", model, "purged_run", run, "") for model, run in measured]

    def _load_whole(self, kind: str, ids: Collection[str]) -> dict[str, Whole]:
        loaded: dict[str, Whole] = {}
        stored = self.bases[kind].lookup(ids)
        self._complete(kind, [id for id in ids if id not in stored])
        for id in ids:
            partial = self.tail.get((kind, id))
            entity = stored.get(id)
            if entity is None and (partial is None or partial.stored):
                continue
            entity = entity or Entity(kind, id)
            if partial is not None:
                entity.merge(partial.fold())
            loaded[id] = self._whole[kind, id] = Whole(entity)
        while len(self._whole) > WHOLE_KEPT:
            self._whole.popitem(last=False)
        return loaded

    def _complete(self, kind: str, ids: Iterable[str]) -> None:
        """Fold in what the logs have of things whose creation is news: derived tables show nothing unborn, and cover it all the same.

        Who writes of a thing has seen its creation, so that what he writes is stamped later.
        """
        news = [p for id in ids if (p := self.tail.get((kind, id))) and p.created and not p.stored]
        covered = max(log.max_of("hlc", self.watermark(kind, name)) for name, log in self.logs.items()) if news else 0
        if late := {(kind, p.entity.id): p.entity for p in news if p.entity.born <= covered}:
            fold_logs_of(late, kind, self.events, self.metrics)

    def _partial(self, kind: str, id: str) -> Partial:
        partial = self.tail.get((kind, id))
        if partial is None:
            partial = self.tail[kind, id] = Partial(Entity(kind, id))
        return partial

    def _read_journals(self, points: bool = True) -> None:
        for segment, record in self._journal.poll(points):
            self._fold_record(segment, record)

    def _fold_record(self, segment: str, record: Record) -> None:
        self._clock.observe(record.hlc)
        if record.events:
            stamp = Stamp(record.hlc, writer_of(segment))
            for kind, id, name, key, value in record.events:
                self._fold_event(stamp, kind, id, name, key, value, segment, record.end)
        for block in record.blocks:
            self._fold_block("run", block.run_id, segment, record.end, block)
            if block.model_id:
                self._fold_block("logged_model", block.model_id, segment, record.end, block)

    def _fold_event(self, stamp: Stamp, kind: str, id: str, name: str, key: str, value: str | None, source: str, position: int) -> None:
        partial = self._partial(kind, id)
        partial.entity.fold(stamp, name, key, value)
        partial.events[source] = position
        if name == "attr" and key == "created":
            partial.created, partial.stored = (source, position), False
            self._whole.pop((kind, id), None)  # loaded before it was there
        whole = self._whole.get((kind, id))
        if whole is not None:
            whole.entity.fold(stamp, name, key, value)

    def _fold_block(self, kind: str, id: str, segment: str, end: int, block: PackedBlock) -> None:
        self._partial(kind, id).blocks.append((segment, end, block))
        whole = self._whole.get((kind, id))
        if whole is not None:
            whole.add(block)

    def _update_bases(self) -> bool:
        moved = False
        if self._patience and time.monotonic() - self._bases_seen < self._patience:
            return moved
        self._bases_seen = time.monotonic()
        for base in self.bases.values():
            if base.commits.has_news(base.seen):
                base.update()
                moved = True
        return moved

    def _read_logs(self, points: bool = True) -> None:
        for name, log in self.logs.items():
            if (log is self.metrics and not points) or not log.commits.has_news(log.seen):
                continue
            covered = min(self.watermark(kind, name) for kind in self.bases)
            if covered - log.seen > FAR_BEHIND:
                raise Gone(f"'{name}' was left alone for {covered - log.seen} versions")
            for commit in log.commits.after(log.seen):
                if commit.added_rows and not self._has_read(name, commit):
                    if commit.version <= covered:
                        self._whole.clear()  # the derived tables have these rows, what is kept of them has not
                    else:
                        log.update()
                        self._fold_log(log, commit.version - 1, commit.version)
                log.seen = commit.version
                self._commits[name].append(commit)
                self._taken[name].update(commit.transactions)

    def _has_read(self, log: str, commit: Commit) -> bool:
        """Whether all rows of a commit came through journals that this process has read."""
        if not commit.transactions:
            return False
        for segment, position in commit.transactions.items():
            after = self._taken[log].get(segment, 0)
            if not self._journal.has_read(segment, after, position):
                for name, record in self._journal.poll_segment(segment):
                    self._fold_record(name, record)
            if not self._journal.has_read(segment, after, position):
                return False
        return True

    def _fold_log(self, log: Table, after: int, until: int) -> None:
        rows = log.rows_since(after, until)
        source = log.spec.name
        if log is self.events:
            for stamp, event in events_of(rows):
                self._clock.observe(stamp.hlc)
                self._fold_event(stamp, *event, source, until)
            return
        for run, name, fold in fold_metric_rows(rows):
            for entity in self._news("run", run, source, until):
                entity.fold_metric(name, fold)
        for model, point, value in model_points(rows):
            for entity in self._news("logged_model", model, source, until):
                entity.fold_points([(point, value)])

    def _news(self, kind: str, id: str, source: str, position: int) -> Iterable[Entity]:
        partial = self._partial(kind, id)
        partial.points[source] = position
        whole = self._whole.get((kind, id))
        found = [partial.entity] + ([whole.entity] if whole else [])
        return [entity for entity in found if entity.purged is None]

    def _forget_covered(self) -> None:
        """Drop the news that the derived tables have by now."""
        for kind in self.bases:
            events, points = (self._covered(name, self.watermark(kind, name)) for name in self.logs)
            for key in [key for key in self.tail if key[0] == kind]:
                partial = self.tail[key]
                partial.drop(points)
                if not partial.blocks and _within(partial.events, events) and _within(partial.points, points):
                    del self.tail[key]
                elif partial.created and _within(dict([partial.created]), events):
                    partial.stored = True
        for name in self.logs:
            oldest = min(self.watermark(kind, name) for kind in self.bases)
            self._commits[name] = [c for c in self._commits[name] if c.version > oldest]

    def _covered(self, log: str, watermark: int) -> dict[str, int]:
        positions = {log: watermark}
        for commit in self._commits[log]:
            if commit.version <= watermark:
                positions.update(commit.transactions)
        return positions


def _within(positions: dict[str, int], covered: dict[str, int]) -> bool:
    return all(position <= covered.get(source, -1) for source, position in positions.items())
