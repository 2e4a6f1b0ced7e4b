"""Delta tables of others in the layout of Databricks' `system.mlflow`: a folder with the three tables, and nothing else of a lake."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from spark_tracking import config
from spark_tracking.errors import InvalidInput, PermissionRefused, Unavailable
from spark_tracking.kinds.shapes import AGGREGATES
from spark_tracking.lake import storage
from spark_tracking.lake.root import MARKER
from spark_tracking.lake.tables import BY_NAME

NAMES = ("experiments_latest", "runs_latest", "run_metrics_history")
_STAGE = "CASE WHEN delete_time IS NULL THEN 'active' ELSE 'deleted' END AS lifecycle_stage"


def layout_of(root: str) -> str:
    """What a folder or cloud URL holds: `lake`, `tables` (these) or nothing of both ("")."""
    try:
        if storage.of(root).exists(MARKER):
            return "lake"
        return "tables" if all(DeltaTable.is_deltatable(f"{root}/{name}") for name in NAMES) else ""
    except (DeltaError, OSError, ValueError):
        return ""


def versions(root: str, tables: Sequence[str]) -> list[int] | None:
    """Which version each Delta table of a folder has; None where one cannot be read."""
    try:
        return [DeltaTable(f"{root}/{name}").version() for name in tables]
    except DeltaError:
        return None


def _require_inside(root: str, table: str, delta: DeltaTable) -> None:
    """See that a table of somebody else's reads nothing but its own files.

    Raises:
        PermissionRefused: its log names a file elsewhere, or a link leads there.
    """
    if config.FOREIGN_FILES.get():
        return
    folder, home = f"{root}/{table}", os.path.realpath(root) + os.sep
    named = pa.table(delta.get_add_actions())["path"].to_pylist()
    outside = [path for path in named if _leads_out(path)]
    if "://" not in root and not outside:
        log = [f"_delta_log/{name}" for name in os.listdir(f"{folder}/_delta_log")]
        outside = [path for path in (*named, *log) if not os.path.realpath(f"{folder}/{unquote(path)}").startswith(home)]
    if outside:
        raise PermissionRefused(
            f"The Delta table {folder} names '{outside[0][:200]}', which lies outside of its folder. Nothing of it is read. "
            f"If that is meant, as in a shallow clone, set {config.FOREIGN_FILES.name}=true."
        )


def _leads_out(path: str) -> bool:
    decoded = path
    while (more := unquote(decoded)) != decoded:
        decoded = more
    return (
        decoded.startswith(("/", "\\"))
        or re.match(r"[A-Za-z][\w+.-]*:", decoded) is not None
        or ".." in re.split(r"[/\\]", decoded)
        or "\0" in decoded
    )


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
        from spark_tracking.lake.query import Query

        try:
            delta = DeltaTable(f"{self._root}/{table}", version=version)
            if as_of is not None:
                delta.load_as_version(as_of)
            _require_inside(self._root, table, delta)
            stored = {field.name for field in delta.schema().fields}
            query = Query.of(delta)
        except (DeltaError, OSError) as error:
            raise Unavailable(f"The Delta table {self._root}/{table} cannot be read: {error}") from error
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
