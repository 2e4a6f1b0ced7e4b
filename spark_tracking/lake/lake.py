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
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking import config
from spark_tracking.address import LakeUri
from spark_tracking.delta import storage
from spark_tracking.delta.commit_log import Gone
from spark_tracking.delta.faults import explained_batches
from spark_tracking.kinds.rows import STATE
from spark_tracking.kinds.rows import rows as project_rows
from spark_tracking.kinds.state import Entity, Event, MetricBlock
from spark_tracking.lake import check, history, maintain, repair, root_folder
from spark_tracking.lake.forked import Forked, all_answered
from spark_tracking.lake.journal_record import Clock, PackedBlock, encode, last_of_each, pack_block
from spark_tracking.lake.journals import journal_of
from spark_tracking.lake.names import Names, first_experiment, insist
from spark_tracking.lake.process_view import View
from spark_tracking.lake.refresh import Refresher
from spark_tracking.lake.tables import BY_KIND, METRICS_LOG, spec_of
from spark_tracking.lake.upkeep import Upkeep

if TYPE_CHECKING:
    from spark_tracking.delta.query import Overlaid, Query

_log = logging.getLogger(__name__)


@all_answered
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
            artifact_root: where the artifacts of a new lake's first experiment go; default below the lake's root.
            born: since when, in ms, its first experiment has been there; default now. It is the oldest of its store's.

        Raises:
            LakeFormatError: there is no lake, or one of a newer format.
            LakeReadOnly: it had to be created and cannot be.
        """
        uri = uri if isinstance(uri, LakeUri) else LakeUri.parse(uri)
        born = born or time.time_ns() // 1_000_000
        with cls._open_lock:
            lake = cls._open.get(uri.root)
            if lake is None:
                if root_folder.ensure(uri, create):
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
        self._torn = False  # a poll was interrupted
        self._journal = journal_of(self._files, config.DURABLE.get())
        self._upkeep = Upkeep(self._files, self._journal, self._lock, lambda: self._vacuum(maintain.KEEP, dry_run=False, orphans=False))
        self._histories = history.MetricHistories(self._look, self._lock)
        self._forked: Forked | None = None  # who answers in a forked child

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
        self, kind: str, where: str | None = None, order_by: Sequence[str] = (), limit: int | None = None, offset: int = 0
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
        from spark_tracking.delta.query import Overlaid

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
        spec = spec_of(table)
        names = list(columns or (name for name in spec.schema.names if name != STATE.name))
        if version is not None:
            rows: Query | Overlaid = history.at_version(self.uri.root, spec, version)
        elif spec.kind and as_of is not None:
            rows = history.as_of(self._files, spec, as_of)
        elif spec.kind:
            with self._lock:
                return explained_batches(self._overlaid(spec.kind).run(names, where), self.uri.root)
        else:
            if as_of is not None:
                where = f"{f'({where}) AND ' if where else ''}hlc < {history.clock_after(as_of)}"
            rows = history.whole_log(self._files, spec, self.flush)
            if spec is METRICS_LOG:
                rows = rows.distinct_points(where)
        return explained_batches(rows.run(names, where), self.uri.root)

    def metric_history(self, run_ids: str | Collection[str], name: str | None = None) -> pa.Table:
        """All points of runs, or of one metric of them: the columns of `run_metrics_history`, each point once.

        Ordered by run (of several), metric, time, step and value. Several runs cost one read.
        """
        ids = (run_ids,) if isinstance(run_ids, str) else tuple(sorted(set(run_ids)))
        return self._histories.points(ids, name) if ids else METRICS_LOG.schema.empty_table()

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
            ticket = self._journal.own.append(record, points=not events)
        position = self._journal.own.wait(ticket)
        self._upkeep.written(position)

    def commit(self, decide: Callable[[], Sequence[Event]]) -> None:
        """Store events that take or free a unique name or number.

        `decide` reads through this lake and returns the events, or raises. It is called again when another process
        committed such events first, so what it saw is still true when its events are in.
        """

        def attempt() -> bool:
            with self._lock:
                number, events = self.names_number(), decide()
                if not events:
                    return True
                done = self.try_commit(number, events)
            if done:
                self._upkeep.in_background().refresh_later()
            return done

        insist(attempt)

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
        there = self._view.get("experiment", "0") or self._names.knows("experiment", "0")  # a damaged table may not show it
        return [] if there else first_experiment(artifact_root, born)

    # -- moving on ----------------------------------------------------------------------------------------------

    def settle(self, wait: bool = True, of: tuple[str, str] | None = None) -> None:
        """Bring everything acknowledged into the logs and the derived tables, where any Delta engine sees it.

        Args:
            wait: do it now; else soon, in the background.
            of: the (kind, id) of the one thing that matters: of many that end at once, the first settles for all who wait.
        """
        if wait:
            self._upkeep.settle(unless=None if of is None else lambda: of not in self._look().tail)
        else:
            self._upkeep.in_background().wake(urgent=True)

    def flush(self) -> None:
        """Journal -> logs, now."""
        self._upkeep.flush()

    def refresh(self) -> int:
        """Logs -> derived tables, now; returns how many rows changed."""
        return self._upkeep.settle()

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
        return {table.spec.name: table.compact() for table in maintain.tables(self.uri.root)}

    def vacuum(self, keep: timedelta = maintain.KEEP, dry_run: bool = False, orphans: bool = True) -> dict[str, list[str]]:
        """Remove files that went out of use longer than `keep` ago; by table, which. Safe beside writers and readers."""
        maintain.require_sound(self._files)
        if not dry_run:
            with maintain.on_a_full_disk():
                self.settle()  # so that more of what is old is covered by the derived tables, and can go
        return self._vacuum(keep, dry_run, orphans)

    # not public: who keeps the lake up holds the lock that `settle` takes
    def _vacuum(self, keep: timedelta, dry_run: bool, orphans: bool) -> dict[str, list[str]]:
        with self._lock:
            self._poll()
            needed = {name: min(self._view.watermark(kind, name) for kind in BY_KIND) for name in self._view.logs}
        return {
            table.spec.name: maintain.vacuum(table, keep, needed.get(table.spec.name, table.version()), dry_run, orphans)
            for table in maintain.tables(self.uri.root)
        }

    def foreign(self, remove: bool = False) -> dict[str, list[str]]:
        """By table, what lies in its folder and is nothing of the table's; with `remove`, it is deleted."""
        return maintain.foreign(self.uri.root, remove)

    def purge(self, kind: str, ids: Collection[str]) -> None:
        """Delete for good, a run's metrics of models included: nobody sees them again, `drop_purged` takes their rows."""

        self.commit(lambda: self._view.purging(kind, ids))

    def drop_purged(self) -> int:
        """Take the rows of purged things out of the logs; returns how many went."""
        self.settle()
        return maintain.drop_purged_rows(self.uri.root)

    def check(self) -> check.Report:
        """Prove that readers see exactly what was acknowledged; see `lake.check`."""
        with self._lock:
            return check.check(self._files, self._look)

    def _look(self) -> View:
        with self._lock:
            self._poll()
            return self._view

    def info(self) -> list[maintain.TableInfo]:
        """Versions, rows, files and sizes of the tables."""
        return maintain.info(self.uri.root)

    def close(self) -> None:
        """Settle what this process wrote and let go of its segment. Called at exit; a lake is usable after it, too."""
        self._upkeep.close()

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
        self._upkeep.forget_handles()
        self.__dict__.pop("_names", None)
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
            if lake._files.exists(root_folder.MARKER):  # else somebody has removed the lake
                lake.close()
        except BaseException as error:  # an exit has no caller; delta-rs panics with a BaseException
            told = str(error).partition("\n")[0].rstrip(".")
            then = "What was acknowledged is in its journal; the next process that opens the lake brings it into the tables."
            _log.warning("The lake at %s could not be settled at exit: %s. %s", lake.uri, told, then)


def _after_fork() -> None:
    """Delta and Arrow are dead in a forked child; who held on to a lake goes on with it all the same."""
    Lake._open_lock = threading.Lock()
    for lake in Lake._open.values():
        lake._forked = Forked(lake.uri.root, lake._journal, lake._clock)


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)
