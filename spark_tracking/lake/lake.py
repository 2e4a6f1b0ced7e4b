"""The lake as its users see it: write, read, search, maintain. One instance per root and process, shared by its threads."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, cast

import pyarrow as pa
import pyarrow.compute as pc
from mlflow.utils.uri import append_to_uri_path

from spark_tracking import config
from spark_tracking.errors import LakeError, LakeReadOnly
from spark_tracking.kinds.rows import STATE
from spark_tracking.kinds.rows import rows as project_rows
from spark_tracking.kinds.state import Entity, Event, MetricBlock
from spark_tracking.lake import check, history, maintain, repair, storage
from spark_tracking.lake import root as roots
from spark_tracking.lake.background import Background
from spark_tracking.lake.clock import Clock
from spark_tracking.lake.columns import among, distinct_points, metric_rows
from spark_tracking.lake.faults import all_in_sentences, explained_batches
from spark_tracking.lake.flush import Flusher
from spark_tracking.lake.journal import ROLL_BYTES
from spark_tracking.lake.log import Gone
from spark_tracking.lake.names import Names
from spark_tracking.lake.record import PackedBlock, Record, encode, last_of_each, pack_block
from spark_tracking.lake.refresh import Refresher
from spark_tracking.lake.tables import BY_KIND, METRICS_LOG, spec_of
from spark_tracking.lake.view import View
from spark_tracking.uri import LakeUri

if TYPE_CHECKING:
    from spark_tracking.lake.query import Overlaid

_log = logging.getLogger(__name__)
REFRESH_SECONDS = 4.0
"""How often a long-lived writer refreshes the derived tables while nothing asks for it."""
COMMIT_ATTEMPTS = 200


@all_in_sentences
class Lake:
    """A lake, opened.

    Example:
        >>> lake = Lake.open("delta:///tmp/lake", create=True)
        >>> lake.get("experiment", "0").attr("name")
        'Default'
    """

    _open: dict[str, Lake] = {}
    _open_lock = threading.Lock()

    @classmethod
    def open(cls, uri: LakeUri | str, create: bool = False, artifact_root: str | None = None, born: int | None = None) -> Lake:
        """The process's lake at `uri`.

        Args:
            create: make the lake when there is none.
            born: since when, in ms, its first experiment has been there; default now. It is the oldest of its store's.
            artifact_root: where the artifacts of a new lake's first experiment go; default below the lake's root.

        Raises:
            LakeFormatError: there is no lake, or one of a newer format.
            LakeReadOnly: it had to be created and cannot be.
        """
        uri = uri if isinstance(uri, LakeUri) else LakeUri.parse(uri)
        born = born or time.time_ns() // 1_000_000
        with cls._open_lock:
            lake = cls._open.get(uri.root)
            if lake is None:
                if roots.ensure(uri, create):
                    _log.warning("Made a new lake at %s", uri.root)  # a typo in a path is no error, so that it must be seen
                lake = cls(uri)
                if create:
                    lake.commit(lambda: lake._first_experiment(artifact_root or uri.artifact_root, born))
                cls._open[uri.root] = lake
            return lake

    def __init__(self, uri: LakeUri) -> None:
        self.uri = uri
        self._files = storage.of(uri.root)
        self._lock = threading.RLock()
        self._clock = Clock()
        self._polled = 0.0  # when the last poll began
        self._journal = self._files.journal(config.DURABLE.get())
        self._background: Background | None = None
        self._flushed, self._flush_bytes = 0, config.FLUSH_BYTES.get()
        self._vacuumed = time.monotonic()
        self._history: tuple[tuple[object, ...], pa.Table] | None = None
        self._torn = False  # a poll was interrupted

    # -- reading ------------------------------------------------------------------------------------------------

    def get(self, kind: str, id: str, points: bool = True) -> Entity | None:
        """The entity, with every change that was acknowledged before this call; None where there is none.

        Args:
            kind: one of `kinds.state`'s table.
            points: whether its metrics are wanted, which costs more the more there are; a writer's look needs none.
        """
        with self._lock:
            self._poll(points)
            entity = self._view.get(kind, id, points)
            return None if entity is None else entity.copy(points)

    def get_many(self, kind: str, ids: Collection[str]) -> dict[str, Entity]:
        """The same for many ids at once; those that are not there are left out."""
        with self._lock:
            self._poll()
            return {id: entity.copy() for id, entity in self._view.get_many(kind, ids).items()}

    def find(self, kind: str, column: str, value: str) -> list[Entity]:
        """The entities of a kind whose text attribute is `value`: a search without SQL, for processes too short to import it.

        Args:
            column: an attribute that is also a column of the kind's derived table.
        """
        with self._lock:
            self._poll()
            base = self._view.bases[kind]
            stored = base.select(pc.field(column) == value, [base.spec.key])[base.spec.key].to_pylist()
            found = self._view.get_many(kind, sorted({*stored, *self._view.touched(kind)}))
            return [entity.copy() for entity in found.values() if entity.attr(column) == value]

    def search(
        self,
        kind: str,
        where: str | None = None,
        order_by: Sequence[str] = (),
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Entity]:
        """The entities whose row satisfies a SQL predicate (DataFusion's dialect) over the kind's derived table."""
        with self._lock:
            key = self._view.bases[kind].spec.key
            reader = self._overlaid(kind).run([key], where, order_by, limit, offset)
        ids = [id for batch in reader for id in batch.column(0).to_pylist()]
        found = self.get_many(kind, ids)
        return [found[id] for id in ids if id in found]

    def count(self, kind: str, where: str | None = None) -> int:
        """How many entities satisfy the predicate."""
        with self._lock:
            return self._overlaid(kind).count(where)

    def _overlaid(self, kind: str) -> Overlaid:
        from spark_tracking.lake.query import Overlaid

        self._poll()
        touched = self._view.touched(kind)
        overlay = project_rows(kind, self._view.get_many(kind, touched).values())
        base = self._view.bases[kind]
        return Overlaid(base.spec, base.delta, touched, overlay)

    def scan(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        version: int | None = None,
        as_of: datetime | None = None,
    ) -> pa.RecordBatchReader:
        """A table of the lake with every acknowledged change in it, as a stream of record batches.

        Args:
            table: a name of `lake.tables`.
            columns: default all but the hidden `state`.
            where: a SQL predicate in DataFusion's dialect.
            version: the Delta version to read instead; as far back as the table's history goes.
            as_of: the state at that time instead, by the logs' own clocks; as far back as the lake.

        Raises:
            NotFound: no table of that name, or no such version of it.
        """
        from spark_tracking.lake import query

        spec = spec_of(table)
        names = list(columns or (name for name in spec.schema.names if name != STATE.name))
        if version is not None:
            return explained_batches(history.at_version(self.uri.root, spec, version).run(names, where), self.uri.root)
        if spec.kind:
            if as_of is not None:
                return history.as_of(self._files, spec, as_of).run(names, where)
            with self._lock:
                return explained_batches(self._overlaid(spec.kind).run(names, where), self.uri.root)
        if as_of is not None:
            where = f"{f'({where}) AND ' if where else ''}hlc < {history.clock_after(as_of)}"
        try:
            self.flush()
            points = query.Query.of(maintain.open_table(self.uri.root, spec).delta)
        except LakeReadOnly:
            points = query.Query.of(history.with_journals(self._files, spec))
        if spec is METRICS_LOG:
            points = points.distinct_points(where)
        return explained_batches(points.run(names, where), self.uri.root)

    def metric_history(self, run_ids: str | Collection[str], name: str | None = None) -> pa.Table:
        """All points of runs, or of one metric of them: the columns of `run_metrics_history`, each point once.

        Ordered by run (of several), metric, time, step and value. Several runs cost one read.
        """
        ids = (run_ids,) if isinstance(run_ids, str) else tuple(sorted(set(run_ids)))
        if not ids:
            return METRICS_LOG.schema.empty_table()
        with self._lock:
            self._poll()
            tails = [self._view.tail_blocks(id) for id in ids]
            log = self._view.metrics
            key = (ids, name, log.update(), *((len(tail), tail[-1][:2] if tail else None) for tail in tails))
            if self._history is not None and self._history[0] == key:
                return self._history[1]  # the next page of the same history
            where = among("run_id", ids)
            stored = log.select(where if name is None else where & (pc.field("metric_name") == name))
            blocks = [block for tail in tails for _, _, block in tail]
        recent = metric_rows([("", Record(0, 0, [], blocks))])
        if name is not None:
            recent = recent.filter(pc.equal(recent["metric_name"], name))
        by = ["metric_name"] if len(ids) == 1 else ["run_id", "metric_name"]
        points = distinct_points(pa.concat_tables([stored.cast(METRICS_LOG.schema), recent]), by)
        self._history = (key, points)
        return points

    # -- writing ------------------------------------------------------------------------------------------------

    def write(self, events: Sequence[Event] = (), metrics: Sequence[MetricBlock] = (), polled: bool = False) -> None:
        """Store one call: all of it or nothing, durable when this returns.

        Args:
            polled: the caller has read from this lake within the same call, so all that came before it has been seen.

        Raises:
            LakeReadOnly, LakeError: nothing was stored.
        """
        blocks = [PackedBlock(b.run_id, b.model_id, pack_block(b)) for b in metrics]
        arrived = time.monotonic()
        with self._lock:
            if not polled and self._polled <= arrived:  # else another thread has looked since this call began
                self._poll(points=False)
            record = encode(self._clock.tick(), last_of_each(events), blocks)
            ticket = self._journal.own.append(record)
        position = self._journal.own.wait(ticket)
        background = self._background or self._in_background()
        if position - self._flushed > self._flush_bytes:
            background.wake()

    def commit(self, decide: Callable[[], Sequence[Event]]) -> None:
        """Store events that take or free a unique name or number.

        `decide` reads through this lake and returns the events, or raises. It is called again when another process
        committed such events first, so what it saw is still true when its events are in.
        """
        for attempt in range(COMMIT_ATTEMPTS):
            with self._lock:
                number = self.names_number()
                events = decide()
                if not events:
                    return
                if self.try_commit(number, events):
                    self._in_background().refresh_later()
                    return
            time.sleep(min(0.001 * 2 ** min(attempt, 6), 0.05))
        raise LakeError(f"Other processes changed names {COMMIT_ATTEMPTS} times in a row; try again later.")

    def names_number(self) -> int:
        """How many commits have taken or freed names; everything up to the last of them has been read."""
        with self._lock:
            number = self._names.number()
            self._poll()
            return number

    def try_commit(self, number: int, events: Sequence[Event]) -> bool:
        """Commit events as the one after `number`; False when another process was first."""
        with self._lock:
            return self._names.commit(number, events, self._clock.tick(), self._journal.own.writer)

    def clock(self) -> int:
        """A stamp that is behind nothing any process has written so far."""
        with self._lock:
            self._poll()
            return self._clock.tick()

    @cached_property
    def _names(self) -> Names:
        return Names(self.uri.root)

    def _first_experiment(self, artifact_root: str, born: int) -> list[Event]:
        """What every MLflow backend has from the start: the experiment 'Default' with the id 0."""
        if self._view.get("experiment", "0") or self._names.knows("experiment", "0"):  # a damaged table may not show it
            return []
        values = {"created": str(born), "updated": str(born), "name": "Default", "lifecycle_stage": "active", "last_id": "0"}
        values["artifact_location"] = append_to_uri_path(artifact_root, "0")
        return [Event("experiment", "0", "attr", key, value) for key, value in values.items()]

    # -- moving on ----------------------------------------------------------------------------------------------

    def settle(self, wait: bool = True, of: tuple[str, str] | None = None) -> None:
        """Bring everything acknowledged into the logs and the derived tables, where any Delta engine sees it.

        Args:
            wait: do it now; else soon, in the background.
            of: the (kind, id) of the one thing that matters: of many that end at once, the first settles for all who wait.
        """
        if not wait:
            self._in_background().wake(urgent=True)
            return
        with self._files.leadership(wait=True):
            if of is None or not self._is_settled(of):
                self._flush()
                self._refresher.refresh()

    def _is_settled(self, thing: tuple[str, str]) -> bool:
        with self._lock:
            self._poll()
            return thing not in self._view.tail

    def flush(self) -> None:
        """Journal -> logs, now."""
        with self._files.leadership(wait=True):
            self._flush()

    def refresh(self) -> int:
        """Logs -> derived tables, now; returns how many rows changed."""
        with self._files.leadership(wait=True):
            self._flush()
            return self._refresher.refresh()

    def rebuild(self, force: bool = False) -> repair.Rebuilt:
        """The derived tables anew from the whole logs, which get back what they lost and other files have; see `lake.repair`."""
        self._files.prepare(["_journal"])
        with self._files.leadership(wait=True):
            try:
                return repair.rebuild(self._files, force)
            finally:
                self._forget_handles()

    def compact(self) -> dict[str, int]:
        """Merge small files; by table, how many went into larger ones. Safe beside writers."""
        self.settle()
        return {table.spec.name: maintain.compact(table) for table in maintain.tables(self.uri.root)}

    def vacuum(self, keep: timedelta = maintain.KEEP, dry_run: bool = False, orphans: bool = True) -> dict[str, list[str]]:
        """Remove files that went out of use longer than `keep` ago; by table, which. Safe beside writers and readers."""
        maintain.require_sound(self._files)
        if not dry_run:
            with maintain.on_a_full_disk():
                self.settle()  # so that more of what is old is covered by the derived tables, and can go
        return self._vacuum(keep, dry_run, orphans)

    def _vacuum(self, keep: timedelta, dry_run: bool, orphans: bool) -> dict[str, list[str]]:
        with self._lock:
            self._poll()
            needed = {name: min(self._view.watermark(kind, name) for kind in BY_KIND) for name in self._view.logs}
        found = {}
        for table in maintain.tables(self.uri.root):
            found[table.spec.name] = maintain.vacuum(table, keep, needed.get(table.spec.name, table.version()), dry_run, orphans)
        return found

    def foreign(self, remove: bool = False) -> dict[str, list[str]]:
        """By table, what lies in its folder and is nothing of the table's; with `remove`, it is deleted."""
        return maintain.foreign(self.uri.root, remove)

    def purge(self, kind: str, ids: Collection[str]) -> None:
        """Delete for good, a run's metrics of models included: nobody sees them again, `drop_purged` takes their rows."""

        def events() -> list[Event]:
            measured = self._view.models_measured_by(ids) if kind == "run" else ()
            of_models = [Event("logged_model", model, "purged_run", run, "") for model, run in measured]
            return [Event(kind, id, "purge", "", None) for id in ids] + of_models

        self.commit(events)

    def drop_purged(self) -> int:
        """Take the rows of purged things out of the logs; returns how many went."""
        self.settle()
        return maintain.drop_purged_rows(self.uri.root)

    def check(self) -> check.Report:
        """Prove that readers see exactly what was acknowledged; see `lake.check`."""
        with self._lock:
            return check.check(self._files, self._look)

    def _look(self) -> View:
        self._poll()
        return self._view

    def info(self) -> list[maintain.TableInfo]:
        """Versions, rows, files and sizes of the tables."""
        return maintain.info(self.uri.root)

    def close(self) -> None:
        """Settle what this process wrote and let go of its segment. Called at exit; a lake is usable after it, too."""
        background, self._background = self._background, None
        if background is None:
            return
        background.stop()
        with self._lock:
            own = self._journal.own.name
            self._journal.own.close()
        with self._files.leadership(wait=True):
            self._flusher.flush(own)
            self._refresher.refresh()

    @cached_property
    def _flusher(self) -> Flusher:
        return Flusher(self.uri.root, self._files.journal())

    @cached_property
    def _refresher(self) -> Refresher:
        return Refresher(self.uri.root, self._flusher.events, self._flusher.metrics)

    def _flush(self) -> bool:
        self._refresher.require_whole_logs()
        moved = self._flusher.flush()
        with self._lock:
            if self._journal.own.position > ROLL_BYTES:
                self._journal.own.close()
            self._flushed = self._journal.own.position
        return moved

    def _refresh(self) -> None:
        self._refresher.refresh()
        if time.monotonic() - self._vacuumed > maintain.KEEP.total_seconds() / 3:
            self._vacuumed = time.monotonic()
            self._vacuum(maintain.KEEP, dry_run=False, orphans=False)  # not `vacuum`: the lock that it takes is held here

    def _in_background(self) -> Background:
        with self._lock:
            if self._background is None:
                seconds = config.FLUSH_SECONDS.get()
                self._background = Background(self._files, self._flush, self._refresh, seconds, REFRESH_SECONDS)
                self._background.start()
            return self._background

    def _poll(self, points: bool = True) -> None:
        self._polled = time.monotonic()
        try:
            if self._torn and "_view" in self.__dict__:
                raise Gone("the last poll was interrupted")
            self._view.poll(points)
        except Gone:
            self._view = self._load_view()
        except BaseException:  # Ctrl+C between reading a record and folding it would lose it to this process
            self._torn = True
            raise

    @cached_property
    def _view(self) -> View:
        return self._load_view()

    def _forget_handles(self) -> None:
        """After an error of Delta's, or a rebuild: handles on tables as they were are of no use."""
        for name in ("_flusher", "_refresher", "_names"):
            self.__dict__.pop(name, None)
        self._torn = True

    def _load_view(self) -> View:
        self._torn = False
        try:
            return View(self.uri.root, self._journal, self._clock)
        except Gone:
            Refresher(self.uri.root).rebuild()
            return View(self.uri.root, self._journal, self._clock)


def _close_all() -> None:
    for lake in list(Lake._open.values()):
        try:
            if lake._files.exists(roots.MARKER):  # else somebody has removed the lake
                lake.close()
        except BaseException as error:  # an exit has no caller; delta-rs panics with a BaseException
            _log.warning(
                "The lake at %s could not be settled at exit: %s. What was acknowledged is in its journal; the next process that "
                "opens the lake brings it into the tables.",
                lake.uri,
                str(error).partition("\n")[0].rstrip("."),
            )


def _after_fork() -> None:
    """Delta and Arrow are dead in a forked child; see `lake.forked`. Stores hold on to the object, so it changes its class."""
    if Lake._open:
        from spark_tracking.lake.forked import ForkedLake

        Lake._open_lock = threading.Lock()
        for lake in Lake._open.values():
            lake.__class__ = ForkedLake
            cast(ForkedLake, lake).reborn()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)
