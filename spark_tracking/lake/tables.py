"""The tables of a lake: names, Arrow schemas and Delta properties, all in one place.

The derived tables follow from `kinds.catalog`. The first columns of `run_metrics_history` are those of Databricks'
`system.mlflow` (https://docs.databricks.com/aws/en/admin/system-tables/mlflow), in name, type and order, so that SQL written
for one runs on the other; columns of ours come after them. Times are UTC with microseconds.
"""

from __future__ import annotations

import pyarrow as pa

from spark_tracking.delta.table import TableSpec
from spark_tracking.errors import NotFound
from spark_tracking.kinds.catalog import KINDS
from spark_tracking.kinds.rows import STATE
from spark_tracking.kinds.shapes import NUMBER, STRING, TIMESTAMP

FORMAT_VERSION = 1
"""The lake format that this package writes; `lake.json` in the root says which one a lake has."""

RUN_METRICS_HISTORY = pa.schema(
    [
        ("account_id", STRING),
        ("insert_time", TIMESTAMP),
        ("record_id", STRING),
        ("workspace_id", STRING),
        ("experiment_id", STRING),
        ("run_id", STRING),
        ("metric_name", STRING),
        ("metric_time", TIMESTAMP),
        ("metric_step", NUMBER),
        ("metric_value", pa.float64()),
        # ours
        ("model_id", STRING),
        ("dataset_name", STRING),
        ("dataset_digest", STRING),
        ("hlc", NUMBER),
    ]
)

EVENTS = pa.schema(
    [
        ("hlc", NUMBER),
        ("writer", STRING),
        ("insert_time", TIMESTAMP),
        ("kind", STRING),
        ("id", STRING),
        ("field", STRING),
        ("key", STRING),
        ("value", STRING),
    ]
)

_COMMON = {
    # Append time grows with the number of commits in the log, so history is short; time travel further back is computed
    # from the logs' own clocks.
    "delta.logRetentionDuration": "interval 20 minutes",
    "delta.deletedFileRetentionDuration": "interval 1 hours",
    "delta.checkpointInterval": "50",
}


_LOG = {**_COMMON, "delta.enableChangeDataFeed": "true", "delta.setTransactionRetentionDuration": "interval 1 hours"}

_LOG_FILE_BYTES = 64 * 1024 * 1024
_FILE_BYTES = 1_200_000
"""Size of a derived table's files: a change rewrites the files it touches, so they stay small (~5,000 runs)."""

EVENTS_LOG = TableSpec("events", EVENTS, ("id", "hlc"), _LOG_FILE_BYTES, _LOG)
METRICS_LOG = TableSpec("run_metrics_history", RUN_METRICS_HISTORY, ("run_id", "hlc"), _LOG_FILE_BYTES, _LOG)
LOGS = (EVENTS_LOG, METRICS_LOG)

DERIVED = tuple(TableSpec(kind.table, kind.schema.append(STATE), (kind.key,), _FILE_BYTES, _COMMON, kind.name, kind.key) for kind in KINDS)
BY_NAME = {spec.name: spec for spec in (*LOGS, *DERIVED)}
BY_KIND = {spec.kind: spec for spec in DERIVED}


def spec_of(table: str) -> TableSpec:
    """What the table of this name is. Raises NotFound: there is none."""
    if table not in BY_NAME:
        raise NotFound(f"A lake has no table '{table}'. It has: {', '.join(BY_NAME)}.")
    return BY_NAME[table]
