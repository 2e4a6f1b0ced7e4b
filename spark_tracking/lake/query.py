"""SQL over a derived table and the news that it does not have yet, as one table, by DataFusion.

The import of DataFusion costs 0.25 s, so nothing but a search pays it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
from datafusion import SessionConfig, SessionContext

from spark_tracking.lake.derived import DerivedTable


class Query:
    """One derived table as of the version of its handle, overlaid with newer rows.

    Args:
        table: the derived table.
        ids: of the rows that the overlay replaces or removes.
        overlay: the newer rows, in the table's schema.
    """

    def __init__(self, table: DerivedTable, ids: Sequence[str], overlay: pa.Table) -> None:
        self._context = SessionContext(SessionConfig({"datafusion.execution.parquet.pushdown_filters": "true"}))
        self._context.register_table("base", table.delta)
        self._key = table.spec.key
        self._names = table.spec.schema.names
        self._overlaid = bool(ids)
        if ids:
            self._context.register_record_batches("gone", [pa.table({"id": pa.array(ids, pa.string())}).to_batches()])
            self._context.register_record_batches("news", [overlay.to_batches()])

    def run(
        self,
        columns: Iterable[str],
        where: str | None = None,
        order_by: Sequence[str] = (),
        limit: int | None = None,
        offset: int = 0,
    ) -> pa.RecordBatchReader:
        """`SELECT columns … WHERE … ORDER BY … LIMIT … OFFSET …` over the overlaid table."""
        sql = f"SELECT {', '.join(columns)} FROM {self._source()}"
        if where:
            sql += f" WHERE {where}"
        if order_by:
            sql += f" ORDER BY {', '.join(order_by)}"
        if limit is not None:
            sql += f" LIMIT {limit}"
        if offset:
            sql += f" OFFSET {offset}"
        frame = self._context.sql(sql)
        return pa.RecordBatchReader.from_stream(frame)

    def _source(self) -> str:
        if not self._overlaid:
            return "base"
        names = ", ".join(self._names)
        kept = f"SELECT {names} FROM base LEFT ANTI JOIN gone ON base.{self._key} = gone.id"
        return f"({kept} UNION ALL SELECT {names} FROM news)"
