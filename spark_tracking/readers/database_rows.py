"""The columns in which MLflow's tables are fetched, and how they become those of the readers' tables."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.readers.query import Query

MODEL_STATUS = pa.array(["UNSPECIFIED", "PENDING", "READY", "FAILED"])


def schema_of(**types: str) -> pa.Schema:
    """Names with a letter for the type: string, integer, float, boolean."""
    kinds = {"s": pa.string(), "i": pa.int64(), "f": pa.float64(), "b": pa.bool_()}
    return pa.schema([(name, kinds[kind]) for name, kind in types.items()])


PAIR, NUMBER_PAIR = schema_of(id="s", key="s", value="s"), schema_of(id="s", key="s", value="f", is_nan="b")
RUN = schema_of(
    run_uuid="s", experiment_id="s", user_id="s", start_time="i", end_time="i", name="s", status="s", artifact_uri="s",
    lifecycle_stage="s", deleted_time="i",
)  # fmt: skip
MODEL = schema_of(
    model_id="s", experiment_id="s", name="s", artifact_location="s", creation_timestamp_ms="i", last_updated_timestamp_ms="i", status="i",
    lifecycle_stage="s", model_type="s", source_run_id="s", status_message="s",
)  # fmt: skip


def batch_of(query: Query, columns: dict[str, pa.Array]) -> pa.RecordBatch:
    """The table's columns; null where there are none of that name."""
    rows = len(next(iter(columns.values())))
    arrays = []
    for field in query.spec.schema:
        column = columns.get(field.name)
        if column is None:
            column = pa.nulls(rows, field.type)
        arrays.append((column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column).cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=query.spec.schema)


def with_nan(metrics: pa.Table) -> pa.Table:
    """Values with NaN where the database has a mark for it."""
    values = pc.if_else(metrics["is_nan"], float("nan"), metrics["value"])
    return metrics.drop(["is_nan"]).set_column(2, "value", values)


def text_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts with null where they are empty."""
    return pc.if_else(pc.equal(column, ""), None, column)
