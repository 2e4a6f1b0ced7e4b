"""The tables that can be read, one Arrow schema each, whichever way they are read.

Where a lake stores a table, the schema is the lake's without its inner columns; the rest is defined here. The columns
of `runs` are those of Databricks' `mlflow-experiment` data source
(https://docs.databricks.com/aws/en/query/formats/mlflow-experiment).
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from spark_tracking.errors import InvalidInput
from spark_tracking.kinds.catalog import KINDS, RUN, Kind
from spark_tracking.kinds.shapes import DATASETS as DATASETS_OF_RUN
from spark_tracking.lake.tables import RUN_METRICS_HISTORY

_INNER = ("hlc", "version_id")
_NOT_YET = (("model_version", "model_id"),)
"""What MLflow's pages are to tell, and don't."""


@dataclass(frozen=True)
class Table:
    """A table that can be read.

    Attributes:
        order: the columns by which `spark_tracking.read` orders the rows.
        kind: what the filter language speaks of.
        about: one sentence for the reference page.
        unknown_rest, unknown_database: columns that are null when read this way, for the server does not tell.
    """

    name: str
    schema: pa.Schema
    order: tuple[str, ...]
    kind: Kind
    about: str
    unknown_rest: tuple[str, ...] = ()
    unknown_database: tuple[str, ...] = ()


def _without_inner(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field for field in schema if field.name not in _INNER])


def table_for(kind: Kind) -> Table:
    """The table of a kind's things."""
    schema = _without_inner(kind.schema)
    told = [column for column in kind.columns if column.name in schema.names]
    order = tuple(column.name for column in told if column.sql in kind.sql_key)
    rest = tuple(column.name for column in told if column.rest is None or not column.listed or (kind.name, column.name) in _NOT_YET)
    return Table(kind.table, schema, order, kind, kind.about, rest, tuple(column.name for column in told if column.sql is None))


_RUN_COLUMNS = ("run_id", "experiment_id", "metrics", "params", "tags", "start_time", "end_time", "status", "artifact_uri")
_RUN = [RUN.schema.field(name) for name in ("run_id", "experiment_id")]
DATASETS = pa.schema([*_RUN, *DATASETS_OF_RUN.value_type])
ARTIFACTS = pa.schema([*_RUN, *((name, pa.string()) for name in ("artifact_uri", "path")), ("file_size", pa.int64())])
_POINTS_UNKNOWN = ("account_id", "workspace_id", "insert_time", "record_id", "model_id", "dataset_name", "dataset_digest")

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "runs",
            pa.schema([RUN.schema.field(name) for name in _RUN_COLUMNS]),
            ("run_id",),
            RUN,
            "Runs in the columns of Databricks' `mlflow-experiment` source.",
        ),
        table_for(RUN),
        Table(
            "run_metrics_history",
            _without_inner(RUN_METRICS_HISTORY),
            ("run_id", "metric_name", "metric_time", "metric_step", "metric_value"),
            RUN,
            "Every logged point of every metric of the runs, of any length, each point once.",
            _POINTS_UNKNOWN,
            _POINTS_UNKNOWN,
        ),
        Table("datasets", DATASETS, ("run_id", "name", "digest"), RUN, "The data sets that runs logged as inputs, one row per use."),
        Table(
            "artifacts",
            ARTIFACTS,
            ("run_id", "path"),
            RUN,
            "The files below the runs' artifact folders, only listed; `path` is relative to `artifact_uri`, `file_size` in bytes.",
        ),
        *(table_for(kind) for kind in KINDS if kind is not RUN),
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
