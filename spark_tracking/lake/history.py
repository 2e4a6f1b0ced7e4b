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
            f"'{spec.name}' has no version {version} to read (any more): {error}. Delta versions are kept for a quarter of an hour; "
            "`as_of=` a time reaches back to the lake's beginning."
        ) from error


def with_journals(files: Storage, spec: TableSpec) -> pa.Table:
    """A log with what journals hold beyond it: for a root where it cannot be flushed."""
    log = Table(files.root, spec)
    pending = _journal_rows(files, log)
    return pa.concat_tables([log.select(None), pending])


def _journal_rows(files: Storage, log: Table) -> pa.Table:
    """What the journals hold beyond a log, which is brought to its newest version after them, so that nothing is missed."""
    journal = files.journal()
    found = [(segment, record) for segment in journal.segments() for record in journal.read(segment, 0) or ()]
    log.update()
    pairs = [(writer_of(segment), record) for segment, record in found if record.end > (log.transaction(segment) or 0)]
    return event_rows(pairs) if log.spec is EVENTS_LOG else metric_rows(pairs)


def clock_after(when: datetime) -> int:
    """The first clock (`hlc`) behind a time; one without a zone is UTC.

    Raises:
        InvalidInput: `when` is not a time.
    """
    if not isinstance(when, datetime):
        raise InvalidInput(f"as_of='{when}' is not a time; give a datetime.datetime.")
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    return from_milliseconds(int(when.timestamp() * 1000) + 1)


def as_of(files: Storage, spec: TableSpec, when: datetime) -> Query:
    """A derived table with what had happened by `when` (inclusive; a time without a zone is UTC), folded from journals and logs.

    Costs a read of the logs up to then, once.

    Raises:
        InvalidInput: `when` is not a time.
    """
    from spark_tracking.lake.query import Query

    until = pc.field("hlc") < pa.scalar(clock_after(when), pa.int64())
    events, metrics = Table(files.root, EVENTS_LOG), Table(files.root, METRICS_LOG)
    pending = [_journal_rows(files, log).filter(until) for log in (events, metrics)]
    of_kind = pc.field("kind") == spec.kind
    entities = Folding()
    fold_rows(entities, pa.concat_tables([pending[0].filter(of_kind), events.select(of_kind & until)]), pending[1])
    if spec.kind in ("run", "logged_model"):
        for batch in metrics.batches(until):
            fold_rows(entities, EVENTS_LOG.schema.empty_table(), batch)
    return Query.of(project_rows(spec.kind, [e for e in entities.values() if e.kind == spec.kind]))
