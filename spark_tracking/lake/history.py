"""The lake as it was: at a Delta version, as far as the tables' history goes, or at a time, as far back as the lake itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.delta.storage import Storage
from spark_tracking.delta.table import Table, TableSpec
from spark_tracking.errors import InvalidInput, LakeReadOnly, NotFound
from spark_tracking.kinds.rows import rows as project_rows
from spark_tracking.kinds.state import COUNTER_BITS
from spark_tracking.lake.journal_record import Record
from spark_tracking.lake.journals import journal_of
from spark_tracking.lake.log_rows import among, distinct_points, metric_rows
from spark_tracking.lake.process_view import View
from spark_tracking.lake.replay import journal_rows, of_logs, replay
from spark_tracking.lake.tables import EVENTS_LOG, METRICS_LOG

if TYPE_CHECKING:
    from spark_tracking.delta.query import Query


def at_version(root: str, spec: TableSpec, version: int) -> Query:
    """A table at one of its Delta versions. Raises NotFound: the version does not exist, or is older than the table's history."""
    from spark_tracking.delta.query import Query

    try:
        return Query.at_version(f"{root}/{spec.name}", version)
    except NotFound as error:
        raise NotFound(
            f"'{spec.name}' has no version {version} to read (any more): {error.message}. Delta versions are kept for a "
            "quarter of an hour; `as_of=` a time reaches back to the lake's beginning."
        ) from error


def whole_log(files: Storage, spec: TableSpec, flush: Callable[[], object]) -> Query:
    """A log with what journals hold beyond it: flushed into it or, where it cannot be written, beside it."""
    from spark_tracking.delta.query import Query

    try:
        flush()
        return Query.of(Table(files.root, spec).delta)
    except LakeReadOnly:
        log = Table(files.root, spec)
        pending, _ = journal_rows(journal_of(files), log)
        return Query.of(pa.concat_tables([log.select(None), pending]))


def clock_after(when: datetime) -> int:
    """The first clock (`hlc`) behind a time; one without a zone is UTC. Raises InvalidInput: `when` is not a time."""
    if not isinstance(when, datetime):
        raise InvalidInput(f"as_of='{when}' is not a time; give a datetime.datetime.")
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    return int(when.timestamp() * 1000) + 1 << COUNTER_BITS


def as_of(files: Storage, spec: TableSpec, when: datetime) -> Query:
    """A derived table with what had happened by `when` (inclusive; a time without a zone is UTC), folded from journals and logs.

    Costs a read of the logs up to then, once.

    Raises:
        InvalidInput: `when` is not a time.
    """
    from spark_tracking.delta.query import Query

    until = pc.field("hlc") < pa.scalar(clock_after(when), pa.int64())
    events, metrics = Table(files.root, EVENTS_LOG), Table(files.root, METRICS_LOG)
    pending = [journal_rows(journal_of(files), log)[0].filter(until) for log in (events, metrics)]
    entities = of_logs(events, metrics, spec.kind, until)
    replay(entities, pending[:1], pending[1:])
    return Query.of(project_rows(spec.kind, [e for e in entities.values() if e.kind == spec.kind]))


class MetricHistories:
    """The points of runs. The last answer is kept: the next page of the same history is asked for next."""

    def __init__(self, look: Callable[[], View], lock: threading.RLock) -> None:
        self._look, self._lock = look, lock
        self._last: tuple[tuple[object, ...], pa.Table] | None = None

    def points(self, ids: tuple[str, ...], name: str | None) -> pa.Table:
        """See `Lake.metric_history`."""
        with self._lock:
            view = self._look()
            tails = [view.tail_blocks(id) for id in ids]
            key = (ids, name, view.metrics.update(), *((len(tail), tail[-1][:2] if tail else None) for tail in tails))
            if self._last is not None and self._last[0] == key:
                return self._last[1]
            where = among("run_id", ids)
            stored = view.metrics.select(where if name is None else where & (pc.field("metric_name") == name))
            blocks = [block for tail in tails for _, _, block in tail]
        recent = metric_rows([("", Record(0, 0, [], blocks))])
        if name is not None:
            recent = recent.filter(pc.equal(recent["metric_name"], name))
        by = ["metric_name"] if len(ids) == 1 else ["run_id", "metric_name"]
        points = distinct_points(pa.concat_tables([stored.cast(METRICS_LOG.schema), recent]), by)
        self._last = key, points
        return points
