"""The tables of a lake: names, Arrow schemas and Delta properties, all in one place.

The first columns of `experiments_latest`, `runs_latest` and `run_metrics_history` are those of Databricks' `system.mlflow`
(https://docs.databricks.com/aws/en/admin/system-tables/mlflow), in name, type and order, so that SQL written for one runs
on the other; columns of ours come after them. Times are UTC with microseconds.

`state` is the hidden column: everything that is needed to fold later events into a row (see `lake.state`). Readers leave
it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from spark_tracking.errors import NotFound

FORMAT_VERSION = 1
"""The lake format that this package writes; `lake.json` in the root says which one a lake has."""

STRING = pa.string()
TIME = pa.timestamp("us", tz="UTC")
STRINGS = pa.map_(pa.string(), pa.string())
AGGREGATES = pa.list_(
    pa.struct(
        [
            ("metric_name", pa.string()),
            ("min_value", pa.float64()),
            ("max_value", pa.float64()),
            ("latest_value", pa.float64()),
        ]
    )
)
DATASETS = pa.list_(
    pa.struct(
        [
            ("name", pa.string()),
            ("digest", pa.string()),
            ("source_type", pa.string()),
            ("source", pa.string()),
            ("schema", pa.string()),
            ("profile", pa.string()),
            ("tags", pa.map_(pa.string(), pa.string())),
        ]
    )
)
MODEL_METRICS = pa.list_(
    pa.struct(
        [
            ("metric_name", pa.string()),
            ("value", pa.float64()),
            ("step", pa.int64()),
            ("metric_time", pa.timestamp("us", tz="UTC")),
            ("run_id", pa.string()),
            ("dataset_name", pa.string()),
            ("dataset_digest", pa.string()),
        ]
    )
)
LINKS = pa.list_(pa.struct([("model_id", pa.string()), ("step", pa.int64())]))

STATE = pa.field("state", pa.binary())

RUN_METRICS_HISTORY = pa.schema(
    [
        ("account_id", STRING),
        ("insert_time", TIME),
        ("record_id", STRING),
        ("workspace_id", STRING),
        ("experiment_id", STRING),
        ("run_id", STRING),
        ("metric_name", STRING),
        ("metric_time", TIME),
        ("metric_step", pa.int64()),
        ("metric_value", pa.float64()),
        # ours
        ("model_id", STRING),
        ("dataset_name", STRING),
        ("dataset_digest", STRING),
        ("hlc", pa.int64()),
    ]
)

EVENTS = pa.schema(
    [
        ("hlc", pa.int64()),
        ("writer", STRING),
        ("insert_time", TIME),
        ("kind", STRING),
        ("id", STRING),
        ("field", STRING),
        ("key", STRING),
        ("value", STRING),
    ]
)

EXPERIMENTS_LATEST = pa.schema(
    [
        ("account_id", STRING),
        ("update_time", TIME),
        ("delete_time", TIME),
        ("workspace_id", STRING),
        ("experiment_id", STRING),
        ("name", STRING),
        ("create_time", TIME),
        # ours
        ("artifact_location", STRING),
        ("lifecycle_stage", STRING),
        ("tags", STRINGS),
        STATE,
    ]
)

RUNS_LATEST = pa.schema(
    [
        ("account_id", STRING),
        ("update_time", TIME),
        ("delete_time", TIME),
        ("workspace_id", STRING),
        ("run_id", STRING),
        ("experiment_id", STRING),
        ("created_by", STRING),
        ("start_time", TIME),
        ("end_time", TIME),
        ("run_name", STRING),
        ("status", STRING),
        ("params", STRINGS),
        ("tags", STRINGS),
        ("aggregated_metrics", AGGREGATES),
        # ours
        ("artifact_uri", STRING),
        ("lifecycle_stage", STRING),
        ("metrics", pa.map_(pa.string(), pa.float64())),
        ("datasets", DATASETS),
        ("model_inputs", pa.list_(pa.string())),
        ("model_outputs", LINKS),
        STATE,
    ]
)

LOGGED_MODELS_LATEST = pa.schema(
    [
        ("update_time", TIME),
        ("delete_time", TIME),
        ("model_id", STRING),
        ("experiment_id", STRING),
        ("name", STRING),
        ("create_time", TIME),
        ("model_type", STRING),
        ("source_run_id", STRING),
        ("status", STRING),
        ("status_message", STRING),
        ("artifact_uri", STRING),
        ("lifecycle_stage", STRING),
        ("params", STRINGS),
        ("tags", STRINGS),
        ("metrics", MODEL_METRICS),
        STATE,
    ]
)

REGISTERED_MODELS_LATEST = pa.schema(
    [
        ("update_time", TIME),
        ("name", STRING),
        ("create_time", TIME),
        ("description", STRING),
        ("tags", STRINGS),
        ("aliases", pa.map_(pa.string(), pa.int64())),
        STATE,
    ]
)

MODEL_VERSIONS_LATEST = pa.schema(
    [
        ("update_time", TIME),
        ("name", STRING),
        ("version", pa.int64()),
        ("create_time", TIME),
        ("description", STRING),
        ("created_by", STRING),
        ("current_stage", STRING),
        ("source", STRING),
        ("storage_location", STRING),
        ("run_id", STRING),
        ("run_link", STRING),
        ("model_id", STRING),
        ("status", STRING),
        ("status_message", STRING),
        ("tags", STRINGS),
        # `name/version`, the id in the log
        ("version_id", STRING),
        STATE,
    ]
)

_COMMON = {
    # Append time grows with the number of commits in the log, so history is short; time travel further back is computed
    # from the logs' own clocks.
    "delta.logRetentionDuration": "interval 20 minutes",
    "delta.deletedFileRetentionDuration": "interval 1 hours",
    "delta.checkpointInterval": "50",
}


@dataclass(frozen=True)
class TableSpec:
    """One Delta table of a lake.

    Attributes:
        name: the folder below the root, and the table's name in SQL.
        schema: the Arrow schema, hidden columns included.
        kind: for a derived table, the kind of entity that its rows are.
        key: for a derived table, the column that identifies a row; equals the events' `id`.
        properties: Delta table properties at creation.
    """

    name: str
    schema: pa.Schema
    kind: str = ""
    key: str = ""
    properties: dict[str, str] = field(default_factory=lambda: dict(_COMMON))


_LOG = {**_COMMON, "delta.enableChangeDataFeed": "true", "delta.setTransactionRetentionDuration": "interval 1 hours"}

EVENTS_LOG = TableSpec("events", EVENTS, properties=_LOG)
METRICS_LOG = TableSpec("run_metrics_history", RUN_METRICS_HISTORY, properties=_LOG)
LOGS = (EVENTS_LOG, METRICS_LOG)

DERIVED = (
    TableSpec("experiments_latest", EXPERIMENTS_LATEST, "experiment", "experiment_id"),
    TableSpec("runs_latest", RUNS_LATEST, "run", "run_id"),
    TableSpec("logged_models_latest", LOGGED_MODELS_LATEST, "logged_model", "model_id"),
    TableSpec("registered_models_latest", REGISTERED_MODELS_LATEST, "registered_model", "name"),
    TableSpec("model_versions_latest", MODEL_VERSIONS_LATEST, "model_version", "version_id"),
)
BY_NAME = {spec.name: spec for spec in (*LOGS, *DERIVED)}
BY_KIND = {spec.kind: spec for spec in DERIVED}


def spec_of(table: str) -> TableSpec:
    """What the table of this name is.

    Raises:
        NotFound: there is none.
    """
    if table not in BY_NAME:
        raise NotFound(f"A lake has no table '{table}'. It has: {', '.join(BY_NAME)}.")
    return BY_NAME[table]
