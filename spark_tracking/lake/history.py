"""The lake as it was: at a Delta version, as far as the tables' history goes, or at a time, as far back as the lake itself."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from spark_tracking.errors import InvalidInput, NotFound
from spark_tracking.lake.clock import from_milliseconds
from spark_tracking.lake.columns import event_rows, fold_rows, metric_rows
from spark_tracking.lake.journal import writer_of
from spark_tracking.lake.log import Table
from spark_tracking.lake.project import rows as project_rows
from spark_tracking.lake.refresh import Folding
from spark_tracking.lake.storage import Storage
from spark_tracking.lake.tables import EVENTS_LOG, METRICS_LOG, TableSpec

if TYPE_CHECKING:
    from spark_tracking.lake.query import Query


def at_version(root: str, spec: TableSpec, version: int) -> Query:
    """A table at one of its Delta versions.

    Raises:
        NotFound: the version does not exist, or is older than the table's history.
    """
    from spark_tracking.lake.query import Query

    try:
        return Query.of(DeltaTable(f"{root}/{spec.name}", version=version))
    except (DeltaError, OSError) as error:
        raise NotFound(
            f"'{spec.name}' has no version {version} to read (any more): {error}. Delta versions are kept for an hour; "
            "`as_of=` a time reaches back to the lake's beginning."
        ) from error


def with_journals(files: Storage, spec: TableSpec) -> pa.Table:
    """A log with what journals hold beyond it: for a root where it cannot be flushed."""
    journal = files.journal()
    found = [(segment, record) for segment in journal.segments() for record in journal.read(segment, 0) or ()]
    log = Table(files.root, spec)
    pairs = [(writer_of(segment), record) for segment, record in found if record.end > (log.transaction(segment) or 0)]
    return pa.concat_tables([log.select(None), event_rows(pairs) if spec is EVENTS_LOG else metric_rows(pairs)])


def as_of(root: str, spec: TableSpec, when: datetime) -> Query:
    """A table with what had happened by `when` (inclusive; a time without a zone is UTC), folded from the logs.

    Costs a read of the logs up to then, once.

    Raises:
        InvalidInput: `when` is not a time.
    """
    from spark_tracking.lake.query import Query

    if not isinstance(when, datetime):
        raise InvalidInput(f"as_of='{when}' is not a time; give a datetime.datetime.")
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    until = pc.field("hlc") < pa.scalar(from_milliseconds(int(when.timestamp() * 1000) + 1), pa.int64())
    events, metrics = Table(root, EVENTS_LOG), Table(root, METRICS_LOG)
    if not spec.kind:
        log = events if spec is EVENTS_LOG else metrics
        return Query.of(log.select(until)).distinct_points(None) if log is metrics else Query.of(log.select(until))
    known = events.select((pc.field("kind") == spec.kind) & until)
    entities = Folding()
    fold_rows(entities, known, METRICS_LOG.schema.empty_table())
    if spec.kind in ("run", "logged_model"):
        for batch in metrics.batches(until):
            fold_rows(entities, EVENTS_LOG.schema.empty_table(), batch)
    return Query.of(project_rows(spec.kind, [e for e in entities.values() if e.kind == spec.kind]))
