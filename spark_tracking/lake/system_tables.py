"""Delta tables of others in the layout of Databricks' `system.mlflow`: a folder with the three tables, and nothing else of a lake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.delta import storage
from spark_tracking.delta.foreign import ForeignTable, are_tables
from spark_tracking.errors import InvalidInput
from spark_tracking.kinds.shapes import AGGREGATES
from spark_tracking.lake.root_folder import MARKER
from spark_tracking.lake.tables import BY_NAME

NAMES = ("experiments_latest", "runs_latest", "run_metrics_history")
_STAGE = "CASE WHEN delete_time IS NULL THEN 'active' ELSE 'deleted' END AS lifecycle_stage"


def layout_of(root: str) -> str:
    """What a folder or cloud URL holds: `lake`, `tables` (these) or nothing of both ("")."""
    try:
        if storage.of(root).exists(MARKER):
            return "lake"
    except (OSError, ValueError):
        return ""
    return "tables" if are_tables(root, NAMES) else ""


class SystemTables:
    """The tables, read as a lake's are; columns that only a lake has are null."""

    def __init__(self, root: str) -> None:
        self._root = root

    def scan(
        self, table: str, columns: Sequence[str], where: str | None = None, version: int | None = None, as_of: datetime | None = None
    ) -> pa.RecordBatchReader:
        """As `Lake.scan`, but times go as far back as Delta's own history.

        Raises:
            InvalidInput: the predicate is on a column that these tables do not have.
            Unavailable: the tables cannot be read.
        """
        schema = pa.schema([BY_NAME[table].schema.field(name) for name in columns])
        if table not in NAMES:
            return pa.RecordBatchReader.from_batches(schema, iter(()))
        return pa.RecordBatchReader.from_batches(schema, self._batches(table, schema, where, version, as_of))

    def _batches(
        self, table: str, schema: pa.Schema, where: str | None, version: int | None, as_of: datetime | None
    ) -> Iterator[pa.RecordBatch]:
        foreign = ForeignTable(self._root, table, version, as_of)
        stored, query = foreign.columns, foreign.rows
        if table != "run_metrics_history" and "lifecycle_stage" not in stored:
            query = query.adding(_STAGE)
            stored.add("lifecycle_stage")
        wanted = [name for name in schema.names if name in stored]
        if "metrics" in schema.names and "metrics" not in stored:
            wanted += [] if "aggregated_metrics" in wanted else ["aggregated_metrics"]
        try:
            rows = query.run(wanted, where)
        except Exception as error:  # DataFusion's errors have no class of their own
            raise InvalidInput(f"{self._root}/{table} does not have what the filter asks for: {str(error).splitlines()[0]}") from error
        for batch in rows:
            yield pa.RecordBatch.from_arrays([_column(batch, field) for field in schema], schema=schema)


def _column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    if field.name in batch.schema.names:
        return batch[field.name].cast(field.type)
    if field.name != "metrics":
        return pa.nulls(batch.num_rows, field.type)
    told = batch["aggregated_metrics"].cast(AGGREGATES)
    values = told.flatten()
    offsets = pa.array([0, *(pc.cumulative_sum(pc.list_value_length(told).fill_null(0)).to_pylist())], pa.int32())
    return pa.MapArray.from_arrays(offsets, values.field("metric_name"), values.field("latest_value")).cast(field.type)
