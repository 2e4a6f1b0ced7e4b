"""SQL over a lake's tables with the news that they do not have yet, by DataFusion.

deltalake's own reads the Delta tables, natively and on every storage; the package `datafusion` reads rows in memory, and its
import, 0.25 s, is paid where there are any. Neither gets a Python object: a dataset that is registered is asked for rows by
native threads, and with Ctrl+C the process hangs or aborts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError

from spark_tracking.delta.table import TableSpec
from spark_tracking.errors import NotFound
from spark_tracking.kinds.lake_sql import SOURCE, one_of

IDENTITY = ("record_id", "metric_step")
"""What makes a metric point one: `record_id` is a 64-bit hash of its content, the step rules out what chance is left."""
_SETTINGS = {
    "datafusion.execution.parquet.pushdown_filters": "true",
    # in DataFusion 55 it fails on a map's key in ORDER BY above a UNION: "UNION field 0 have different type in inputs"
    "datafusion.optimizer.enable_leaf_expression_pushdown": "false",
}


class Query:
    """One table to select from.

    Example:
        >>> Query.of(delta).run(["run_id"], "status = 'FAILED'", limit=10).read_all()
    """

    def __init__(self, ask: Callable[[str], pa.RecordBatchReader], source: str = "base") -> None:
        self._ask = ask
        self._source = source

    @classmethod
    def of(cls, source: DeltaTable | pa.Table) -> Query:
        """A Delta table at the handle's version, of which files that statistics rule out are not opened, or rows in memory."""
        return cls(_of_rows(source) if isinstance(source, pa.Table) else _of_table(source))

    @classmethod
    def at_version(cls, uri: str, version: int) -> Query:
        """A Delta table at a version of it. Raises NotFound: there is none any more, or not yet."""
        try:
            return cls.of(DeltaTable(uri, version=version))
        except (DeltaError, OSError) as error:
            raise NotFound(str(error)) from error

    def without(self, key: str, ids: Sequence[str]) -> Query:
        """The same rows but for those with these keys."""
        return Query(self._ask, f"(SELECT * FROM {self._source} WHERE NOT {one_of(key, ids)})")

    def adding(self, expression: str) -> Query:
        """The same rows with one more column."""
        return Query(self._ask, f"(SELECT *, {expression} FROM {self._source})")

    def distinct_points(self, where: str | None) -> Query:
        """The metrics log with each point once. Points logged twice are rare, so the costly way is only gone if there are any."""
        twice = next(iter(self.run([f"count(*) - count(DISTINCT {IDENTITY[0]})"], where))).column(0)[0].as_py()
        if not twice:
            return self
        ranked = f"row_number() OVER (PARTITION BY {', '.join(IDENTITY)} ORDER BY hlc) AS nth"
        filtered = f"SELECT *, {ranked} FROM {self._source}" + (f" WHERE {where}" if where else "")
        return Query(self._ask, f"(SELECT * FROM ({filtered}) WHERE nth = 1)")

    def run(
        self, columns: Iterable[str], where: str | None = None, order_by: Sequence[str] = (), limit: int | None = None, offset: int = 0
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
        return self._ask(sql)


class Overlaid:
    """A derived table in which `rows` stand in place of those with the keys `ids`: two tables that share no key."""

    def __init__(self, spec: TableSpec, base: DeltaTable, ids: Sequence[str], rows: pa.Table) -> None:
        self._key = spec.key
        self._parts = [Query.of(base)]
        if ids:
            few = len(ids) <= _FEW_IDS
            stored = self._parts[0].without(spec.key, ids) if few else _Without(_of_table(base), spec.key, ids)
            self._parts = [stored, Query.of(rows)]
        if ids and spec.kind == "model_version":  # whose filters look at other rows of the same name, in either part
            self._parts = [Query.of(_chained([part.run(spec.schema.names) for part in self._parts]).read_all())]

    def count(self, where: str | None = None) -> int:
        """How many rows satisfy a predicate."""
        return sum(batch.num_rows for part in self._parts for batch in part.run([self._key], where))

    def run(
        self, columns: Sequence[str], where: str | None = None, order_by: Sequence[str] = (), limit: int | None = None, offset: int = 0
    ) -> pa.RecordBatchReader:
        """As `Query.run`: what each part has first is ordered once more."""
        if len(self._parts) == 1:
            return self._parts[0].run(columns, where, order_by, limit, offset)
        if not order_by and limit is None and not offset:
            return _chained([part.run(columns, where) for part in self._parts])
        terms = [_DIRECTION.split(term, 1) for term in order_by]
        wanted = [*columns, *(f"{term[0]} AS o{i}" for i, term in enumerate(terms))]
        first = None if limit is None else limit + offset
        found = _chained([part.run(wanted, where, order_by, first) for part in self._parts]).read_all()
        order = [f"o{i} {' '.join(term[1:])}" for i, term in enumerate(terms)]
        return Query.of(found).run(columns, None, order, limit, offset)


class _Without(Query):
    """The rows of a table but for those with some keys, too many for a list of literals: a planner's stack ends at some 50,000."""

    def __init__(self, ask: Callable[[str], pa.RecordBatchReader], key: str, ids: Sequence[str]) -> None:
        super().__init__(ask)
        self._key, self._ids = key, pa.array(ids, pa.string())

    def run(
        self, columns: Iterable[str], where: str | None = None, order_by: Sequence[str] = (), limit: int | None = None, offset: int = 0
    ) -> pa.RecordBatchReader:
        """As `Query.run`, but for limit and offset, which the caller applies."""
        found = super().run([*columns, f"{self._key} AS key_"], where, order_by).read_all()
        ask = _of_rows(found, gone=pa.table({"id": self._ids}))  # not by Arrow, which cannot filter the string views that come back
        names = ", ".join(f'"{name}"' for name in found.column_names[:-1])
        return ask(f"SELECT {names} FROM base LEFT ANTI JOIN gone ON base.key_ = gone.id")


_FEW_IDS = 500
_DIRECTION = re.compile(r"\s+(?=(?:ASC|DESC)(?:\s+NULLS\s+(?:FIRST|LAST))?$)")


def _chained(parts: Sequence[pa.RecordBatchReader]) -> pa.RecordBatchReader:
    schema = parts[0].schema

    def batches() -> Iterator[pa.RecordBatch]:
        for part in parts:
            for batch in part:
                yield batch if batch.schema == schema else batch.cast(schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _of_table(table: DeltaTable) -> Callable[[str], pa.RecordBatchReader]:
    engine = QueryBuilder(_SETTINGS).register("base", table)
    return lambda sql: pa.RecordBatchReader.from_stream(engine.execute(sql))


def _of_rows(rows: pa.Table, **others: pa.Table) -> Callable[[str], pa.RecordBatchReader]:
    from datafusion import SessionConfig, SessionContext

    context = SessionContext(SessionConfig(_SETTINGS))
    for name, table in {"base": rows, **others}.items():
        # at least one batch, since the schema is taken from it
        context.register_record_batches(name, [table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]])
    return lambda sql: pa.RecordBatchReader.from_stream(context.sql(sql))
