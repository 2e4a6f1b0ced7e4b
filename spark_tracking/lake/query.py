"""SQL over a lake's tables with the news that they do not have yet, by DataFusion.

The import of DataFusion costs 0.25 s, so nothing but a search pays it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.dataset as ds
from datafusion import SessionConfig, SessionContext
from deltalake import DeltaTable

from spark_tracking.kinds.lake_sql import SOURCE
from spark_tracking.lake.tables import TableSpec

IDENTITY = ("record_id", "metric_step")
"""What makes a metric point one: `record_id` is a 64-bit hash of its content, the step rules out what chance is left."""


class Query:
    """One table to select from.

    Example:
        >>> Query.of(delta).run(["run_id"], "status = 'FAILED'", limit=10).read_all()
    """

    def __init__(self, context: SessionContext, source: str) -> None:
        self._context = context
        self._source = source

    @classmethod
    def of(cls, source: DeltaTable | pa.Table | ds.Dataset) -> Query:
        """A Delta table at the handle's version, a table's files, or rows in memory.

        DataFusion opens all files of a Delta table, and only the columns of the rows that it wants: best for a search by values. As
        a dataset, files and row groups whose statistics rule them out are not opened: best for a range of keys.
        """
        context = _context()
        if isinstance(source, DeltaTable) and "://" in source.table_uri and not source.table_uri.startswith("file:"):
            # handed over as a Delta table, it would be read by a DataFusion that knows no object store
            source = source.to_pyarrow_dataset()
        if isinstance(source, ds.Dataset) and not source.files:  # a plan without partitions is refused
            source = source.schema.empty_table()
        if isinstance(source, pa.Table):
            context.register_record_batches("base", [_batches(source)])
        elif isinstance(source, ds.Dataset):
            context.register_dataset("base", source)
        else:
            context.register_table("base", source)
        return cls(context, "base")

    @classmethod
    def overlaid(cls, spec: TableSpec, base: DeltaTable | ds.Dataset, ids: Sequence[str], rows: pa.Table) -> Query:
        """A derived table in which `rows` stand in place of those with the keys `ids`."""
        query = cls.of(base)
        if not ids:
            return query
        query._context.register_record_batches("gone", [pa.table({"id": pa.array(ids, pa.string())}).to_batches()])
        query._context.register_record_batches("news", [_batches(rows)])
        names = ", ".join(spec.schema.names)
        kept = f"SELECT {names} FROM base LEFT ANTI JOIN gone ON base.{spec.key} = gone.id"
        return cls(query._context, f"({kept} UNION ALL SELECT {names} FROM news)")

    def adding(self, expression: str) -> Query:
        """The same rows with one more column."""
        return Query(self._context, f"(SELECT *, {expression} FROM {self._source})")

    def distinct_points(self, where: str | None) -> Query:
        """The metrics log with each point once. Points logged twice are rare, so the costly way is only gone if there are any."""
        twice = next(iter(self.run([f"count(*) - count(DISTINCT {IDENTITY[0]})"], where))).column(0)[0].as_py()
        if not twice:
            return self
        ranked = f"row_number() OVER (PARTITION BY {', '.join(IDENTITY)} ORDER BY hlc) AS nth"
        filtered = f"SELECT *, {ranked} FROM {self._source}" + (f" WHERE {where}" if where else "")
        return Query(self._context, f"(SELECT * FROM ({filtered}) WHERE nth = 1)")

    def run(
        self,
        columns: Iterable[str],
        where: str | None = None,
        order_by: Sequence[str] = (),
        limit: int | None = None,
        offset: int = 0,
    ) -> pa.RecordBatchReader:
        """`SELECT columns … WHERE … ORDER BY … LIMIT … OFFSET …`."""
        # named, since a predicate may look into the table that it is on: see `lake_sql.SOURCE`
        sql = f"WITH {SOURCE} AS (SELECT * FROM {self._source}) SELECT {', '.join(columns)} FROM {SOURCE}"
        if where:
            sql += f" WHERE {where}"
        if order_by:
            sql += f" ORDER BY {', '.join(order_by)}"
        if limit is not None:
            sql += f" LIMIT {limit}"
        if offset:
            sql += f" OFFSET {offset}"
        return pa.RecordBatchReader.from_stream(self._context.sql(sql))


def _context() -> SessionContext:
    settings = {
        "datafusion.execution.parquet.pushdown_filters": "true",
        # in DataFusion 55 it fails on a map's key in ORDER BY above a UNION: "UNION field 0 have different type in inputs"
        "datafusion.optimizer.enable_leaf_expression_pushdown": "false",
    }
    return SessionContext(SessionConfig(settings))


def _batches(rows: pa.Table) -> list[pa.RecordBatch]:
    """The table's batches; at least one, since DataFusion takes the schema from it."""
    return rows.to_batches() or [pa.RecordBatch.from_pylist([], schema=rows.schema)]
