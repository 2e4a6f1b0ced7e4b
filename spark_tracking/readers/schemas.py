"""The tables that can be read, one Arrow schema each, whichever way they are read.

Where a lake stores a table, the schema is the lake's without its inner columns; the rest is defined here. The columns
of `runs` are those of Databricks' `mlflow-experiment` data source
(https://docs.databricks.com/aws/en/query/formats/mlflow-experiment).
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from spark_tracking.errors import InvalidInput
from spark_tracking.lake import tables as lake_tables

_INNER = ("state", "hlc", "version_id")


def _of_lake(name: str) -> pa.Schema:
    return pa.schema([field for field in lake_tables.BY_NAME[name].schema if field.name not in _INNER])


@dataclass(frozen=True)
class Table:
    """A table that can be read.

    Attributes:
        name: what `spark_tracking.read` and `format("mlflow").load` take.
        schema: the columns, the same whichever way the table is read.
        order: the columns by which `spark_tracking.read` orders the rows.
        filter: what the filter language speaks of: runs, experiments, logged_models, registered_models, model_versions.
        about: one sentence for the reference page.
        unknown_rest, unknown_database: columns that are null when read this way, for the server does not tell.
    """

    name: str
    schema: pa.Schema
    order: tuple[str, ...]
    filter: str
    about: str
    unknown_rest: tuple[str, ...] = ()
    unknown_database: tuple[str, ...] = ()


_S, _T = pa.string(), pa.timestamp("us", tz="UTC")
_STRINGS = pa.map_(_S, _S)

RUNS = pa.schema(
    [
        ("run_id", _S),
        ("experiment_id", _S),
        ("metrics", pa.map_(_S, pa.float64())),
        ("params", _STRINGS),
        ("tags", _STRINGS),
        ("start_time", _T),
        ("end_time", _T),
        ("status", _S),
        ("artifact_uri", _S),
    ]
)
DATASETS = pa.schema([("run_id", _S), ("experiment_id", _S), *lake_tables.DATASETS.value_type])
ARTIFACTS = pa.schema([("run_id", _S), ("experiment_id", _S), ("artifact_uri", _S), ("path", _S), ("file_size", pa.int64())])

_ACCOUNT = ("account_id", "workspace_id")

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table("runs", RUNS, ("run_id",), "runs", "Runs in the columns of Databricks' `mlflow-experiment` source."),
        Table(
            "runs_latest",
            _of_lake("runs_latest"),
            ("run_id",),
            "runs",
            "Runs in the columns of `system.mlflow.runs_latest`, and more after them. `aggregated_metrics` holds each metric's least, "
            "greatest and latest value; over REST the first two are null, since only the whole history tells them.",
            (*_ACCOUNT, "update_time", "delete_time", "model_inputs", "model_outputs"),
            (*_ACCOUNT, "update_time"),
        ),
        Table(
            "run_metrics_history",
            _of_lake("run_metrics_history"),
            ("run_id", "metric_name", "metric_time", "metric_step", "metric_value"),
            "runs",
            "Every logged point of every metric of the runs, of any length, each point once.",
            (*_ACCOUNT, "insert_time", "record_id", "model_id", "dataset_name", "dataset_digest"),
            (*_ACCOUNT, "insert_time", "record_id", "model_id", "dataset_name", "dataset_digest"),
        ),
        Table("datasets", DATASETS, ("run_id", "name", "digest"), "runs", "The data sets that runs logged as inputs, one row per use."),
        Table(
            "artifacts",
            ARTIFACTS,
            ("run_id", "path"),
            "runs",
            "The files below the runs' artifact folders, only listed; `path` is relative to `artifact_uri`, `file_size` in bytes.",
        ),
        Table(
            "experiments_latest",
            _of_lake("experiments_latest"),
            ("experiment_id",),
            "experiments",
            "Experiments in the columns of `system.mlflow.experiments_latest`, and more after them.",
            _ACCOUNT,
            _ACCOUNT,
        ),
        Table(
            "logged_models_latest",
            _of_lake("logged_models_latest"),
            ("model_id",),
            "logged_models",
            "Logged models (MLflow 3) with their params, tags and metrics.",
            ("delete_time",),
            ("delete_time",),
        ),
        Table(
            "registered_models_latest",
            _of_lake("registered_models_latest"),
            ("name",),
            "registered_models",
            "Registered models with their tags and aliases.",
        ),
        Table(
            "model_versions_latest",
            _of_lake("model_versions_latest"),
            ("name", "version"),
            "model_versions",
            "Versions of registered models.",
            ("storage_location", "model_id"),
            ("model_id",),
        ),
    )
}


def table_of(name: str) -> Table:
    """The table called `name`.

    Raises:
        InvalidInput: there is none; the message lists those there are.
    """
    table = TABLES.get(name)
    if table is None:
        raise InvalidInput(f"There is no table '{name}'. Tables: {', '.join(TABLES)}.")
    return table
