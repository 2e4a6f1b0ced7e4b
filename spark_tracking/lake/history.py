"""The lake as it was: at a Delta version, as far as the tables' history goes, or at a time, as far back as the lake itself."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from spark_tracking.errors import InvalidInput, NotFound
from spark_tracking.kinds.rows import rows as project_rows
from spark_tracking.lake.clock import from_milliseconds
from spark_tracking.lake.log import Table
from spark_tracking.lake.replay import journal_rows, of_logs, replay
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
    pending, _ = journal_rows(files.journal(), log)
    return pa.concat_tables([log.select(None), pending])


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
    pending = [journal_rows(files.journal(), log)[0].filter(until) for log in (events, metrics)]
    entities = of_logs(events, metrics, spec.kind, until)
    replay(entities, pending[:1], pending[1:])
    return Query.of(project_rows(spec.kind, [e for e in entities.values() if e.kind == spec.kind]))
