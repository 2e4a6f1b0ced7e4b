"""Reading an MLflow database: MLflow's own tables, in columns, in chunks of things that each see one state.

The tables are those of `mlflow.store.tracking.dbmodels.models` and `mlflow.store.model_registry.dbmodels.models`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.errors import NotFound, PermissionRefused
from spark_tracking.kinds import shapes
from spark_tracking.kinds.catalog import RUN, Column, Kind, Pairs
from spark_tracking.kinds.filters import parse_located
from spark_tracking.readers.database_connection import Database
from spark_tracking.readers.database_filters import conditions, literal, quoted
from spark_tracking.readers.nested_columns import batch_of, lists, maps
from spark_tracking.readers.pages import printable, reason
from spark_tracking.readers.query import EVERYTHING, Query, Range
from spark_tracking.readers.reader import DERIVED, Reader, in_order

THINGS_PER_CHUNK = 5_000
BYTES_PER_CHUNK = 64 << 20
RUNS_PER_HISTORY_CHUNK = 100
THINGS_PER_PART = 10_000
RUNS_PER_HISTORY_PART = 64
MAX_PARTS = 64
_STRING, _NUMBER = pa.string(), pa.int64()
_ENUMERATED = ("runs", "logged_models")
"""What there are many of, whose ids a database orders as everybody does."""


class DatabaseReader(Reader):
    """An MLflow database (SQLite, PostgreSQL or MySQL)."""

    noun = "an MLflow database"
    counts_points = True

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._db = Database(uri)

    @property
    def name(self) -> str:
        return f"the MLflow database {self._db.shown}"

    def ping(self) -> None:
        self._number("SELECT count(*) FROM experiments")

    def split(self, query: Query, parts: int | None) -> list[Range]:
        kind, table = query.spec.kind, DERIVED.get(query.table, query.table)
        if kind.plural not in _ENUMERATED or parts == 1:
            return [EVERYTHING]
        where, key = self._where(query, EVERYTHING), kind.sql_key[0]
        count = self._number(f"SELECT count(*) FROM {kind.plural} r WHERE {where}")
        size = RUNS_PER_HISTORY_PART if table == "run_metrics_history" else THINGS_PER_PART
        wanted = parts or min(MAX_PARTS, 1 + count // size)
        # In the database's own order, which is not always that of bytes.
        numbered = f"SELECT r.{key} AS k, row_number() OVER (ORDER BY r.{key}) AS n FROM {kind.plural} r WHERE {where}"
        cuts = ", ".join(str(1 + count * i // wanted) for i in range(1, wanted)) or "0"
        keys = self._db.table(f"SELECT k FROM ({numbered}) numbered WHERE n IN ({cuts}) ORDER BY k", pa.schema([("k", _STRING)]))
        return Range.between(list(dict.fromkeys(keys["k"].to_pylist())))

    def run_count(self, experiment_ids: Sequence[str]) -> int | None:
        return self._number(f"SELECT count(*) FROM runs WHERE experiment_id IN ({', '.join(experiment_ids)})")

    def _point_counts(self) -> Iterator[pa.RecordBatch]:
        sql = "SELECT run_uuid, count(*) FROM metrics GROUP BY run_uuid"
        return self._db.stream(sql, pa.schema([("run", _STRING), ("points", _NUMBER)]))

    def _number(self, sql: str) -> int:
        return int(self._db.table(sql, pa.schema([("n", _NUMBER)]))["n"][0].as_py())

    def _batches(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        if query.table == "run_metrics_history":
            return self._points(query, part)
        batches = self._things(query, part)
        return batches if query.spec.kind.plural in _ENUMERATED or not query.ordered else in_order(batches, query)

    # -- things, in chunks ------------------------------------------------------------------------------------

    def _things(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        """The rows of a table, chunk by chunk; one that cannot be read is left out."""
        kind, size = query.spec.kind, THINGS_PER_CHUNK // 5
        told = [kind.by_name[name] for name in query.spec.schema.names]
        stored = dict.fromkeys(kind.sql_key, _STRING) | {c.sql: c.shape.stored for c in told if isinstance(c.sql, str) and _is_plain(c)}
        after: Sequence[Any] | None = None
        while True:
            try:
                with self._db.snapshot():
                    chunk, among = self._chunk(query, part, after, stored, size)
                    if not len(chunk):
                        return
                    batch = self._batch(query, told, chunk, among)
                    if self._db.dialect == "sqlite":
                        batch.validate(full=True)  # it stores any bytes as texts
            except Exception as error:
                if isinstance(error, (NotFound, PermissionRefused)) or "locked" in str(error):
                    raise
                if size == 1:
                    after = self._left_out(query, part, after, error)
                size = max(1, size // 8)
                continue
            yield batch  # with no transaction open while somebody else works
            after = _last_key(kind, chunk)
            size = max(1, min(THINGS_PER_CHUNK, BYTES_PER_CHUNK * len(chunk) // max(1, batch.nbytes)))

    def _left_out(self, query: Query, part: Range, after: Sequence[Any] | None, error: Exception) -> Sequence[Any]:
        """The key of the next row, which is left out.

        Raises:
            SparkTrackingError: the database gives nothing at all.
        """
        kind = query.spec.kind
        key = _last_key(kind, self._chunk(query, part, after, dict.fromkeys(kind.sql_key, _STRING), 1)[0])
        self.refuse(query.table, printable("/".join(map(str, key))), f"The row cannot be read: {reason(error)}.")
        return key

    def _chunk(
        self, query: Query, part: Range, after: Sequence[Any] | None, columns: Mapping[str, pa.DataType], size: int
    ) -> tuple[pa.Table, str]:
        """The next rows, and SQL for their ids, or the first part of these."""
        kind = query.spec.kind
        keys, first = ", ".join(f"r.{name}" for name in kind.sql_key), kind.sql_key[0]
        where = self._where(query, part if after is None else Range(None, part.high))
        if after is not None:
            where += f" AND ({keys}) > ({', '.join(literal(value, self._db) for value in after)})"
        told = ", ".join(f"r.{name}" for name in columns)
        chunk = self._db.table(f"SELECT {told} FROM {kind.plural} r WHERE {where} ORDER BY {keys} LIMIT {size}", pa.schema(columns.items()))
        if not len(chunk):
            return chunk, ""
        low, high = (literal(chunk[first][i].as_py(), self._db) for i in (0, -1))
        where = self._where(query, EVERYTHING)
        return chunk, f"SELECT r.{first} FROM {kind.plural} r WHERE {where} AND r.{first} BETWEEN {low} AND {high}"

    def _batch(self, query: Query, told: Sequence[Column], chunk: pa.Table, among: str) -> pa.RecordBatch:
        nested = _Nested(self._db, query.spec.kind, chunk, among)
        columns = {}
        for column in told:
            if isinstance(column.sql, str) and _is_plain(column):
                columns[column.name] = column.shape.from_database(chunk[column.sql].combine_chunks())
            elif column.sql is not None:
                columns[column.name] = _NESTED[column.shape](nested, column)
        return batch_of(query.spec.schema, columns)

    def _where(self, query: Query, part: Range) -> str:
        return " AND ".join(self._conditions(query, part)) or "1 = 1"

    def _conditions(self, query: Query, part: Range) -> Iterator[str]:
        kind = query.spec.kind
        yield from conditions(parse_located(kind, query.filter), self._db)
        if query.experiment_ids is not None and "experiment_id" in kind.by_name:
            ids = [id for id in query.experiment_ids if id.isdigit()]
            yield f"r.experiment_id IN ({', '.join(ids)})" if ids else "1 = 0"
        if query.view_type != "all" and "lifecycle_stage" in kind.by_name:
            yield f"r.lifecycle_stage IN ({', '.join(map(self._db.text, query.lifecycle_stages))})"
        if kind is RUN:
            if query.run_ids is not None:
                yield f"r.run_uuid IN ({', '.join(map(self._db.text, query.run_ids)) or 'NULL'})"
            ends = ((">=", query.start_after), ("<", query.start_before))
            yield from (f"r.start_time {sign} {ms}" for sign, ms in ends if ms is not None)
        for sign, end in ((">=", part.low), ("<", part.high)):
            if end is not None:
                yield f"r.{kind.sql_key[0]} {sign} {self._db.text(str(end))}"

    # -- points -----------------------------------------------------------------------------------------------

    def _points(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        names = {"run_uuid": _STRING, "key": _STRING, "timestamp": _NUMBER, "step": _NUMBER, "value": pa.float64(), "is_nan": pa.bool_()}
        word = f"c.{quoted('key', self._db)}"
        key = {"postgresql": f'{word} COLLATE "C"', "mysql": f"BINARY {word}"}.get(self._db.dialect, word)
        order = f" ORDER BY c.run_uuid, {key}, c.timestamp, c.step, c.value" if query.ordered else ""
        columns = f"c.run_uuid, {word}, c.timestamp, c.step, c.value, c.is_nan"
        after = None
        while True:
            with self._db.snapshot():
                runs = {"run_uuid": _STRING, "experiment_id": _STRING}
                chunk, among = self._chunk(query, part, after, runs, RUNS_PER_HISTORY_CHUNK)
                if not len(chunk):
                    return
                sql = f"SELECT {columns} FROM metrics c WHERE c.run_uuid IN ({among}){order}"
                for batch in self._db.stream(sql, pa.schema(names.items())):
                    which = pc.index_in(batch["run_uuid"], value_set=chunk["run_uuid"].combine_chunks())
                    told = {
                        "run_id": batch["run_uuid"],
                        "experiment_id": chunk["experiment_id"].combine_chunks().take(which),
                        "metric_name": batch["key"],
                        "metric_time": shapes.times(batch["timestamp"]),
                        "metric_step": batch["step"],
                        "metric_value": pc.if_else(batch["is_nan"], float("nan"), batch["value"]),
                    }
                    yield batch_of(query.spec.schema, told)
            after = _last_key(RUN, chunk)


def _last_key(kind: Kind, chunk: pa.Table) -> list[Any]:
    return [chunk[name][-1].as_py() for name in kind.sql_key]


class _Nested:
    """The columns that other tables of the database hold, for a chunk of things."""

    def __init__(self, database: Database, kind: Kind, chunk: pa.Table, among: str) -> None:
        self._db = database
        self._keys = kind.sql_key
        self._owners = _joined(chunk, kind.sql_key).combine_chunks()
        self._among = among

    def pairs(self, column: Column) -> pa.Array:
        """Keys and values."""
        assert isinstance(column.sql, Pairs)
        return maps(self._owners, self._rows(column.sql, {column.sql.value: column.shape.type.item_type}), column.shape.type)

    def latest_values(self, column: Column) -> pa.Array:
        """The latest values of a run's metrics."""
        return maps(self._owners, self._latest, column.shape.type)

    @cached_property
    def _latest(self) -> pa.Table:
        rows = self._rows(Pairs("latest_metrics"), {"value": pa.float64(), "is_nan": pa.bool_()})
        return rows.drop(["is_nan"]).set_column(2, "value", pc.if_else(rows["is_nan"], float("nan"), rows["value"]))

    def aggregates(self, column: Column) -> pa.Array:
        """Least, greatest and latest value of each run's metrics; NaN is left out unless there is nothing else."""
        key = f"c.{quoted('key', self._db)}"
        sql = (
            f"SELECT c.run_uuid, {key}, min(c.value), max(c.value) FROM metrics c "
            f"WHERE c.run_uuid IN ({self._among}) AND NOT c.is_nan GROUP BY c.run_uuid, {key}"
        )
        types = {"owner": _STRING, "key": _STRING, "low": pa.float64(), "high": pa.float64()}
        joined = self._latest.join(self._db.table(sql, pa.schema(types.items())), ["owner", "key"])
        low, high = (joined[name].fill_null(pa.scalar(float("nan"))) for name in ("low", "high"))
        rows = pa.table([joined["owner"], joined["key"], low, high, joined["value"]], names=["owner", "key", "low", "high", "latest"])
        return lists(self._owners, rows, column.shape.type)

    def points(self, column: Column) -> pa.Array:
        """The points of a logged model."""
        assert isinstance(column.sql, Pairs)
        numbers, texts = ("metric_step", "metric_timestamp_ms"), ("run_id", "dataset_name", "dataset_digest")
        told = {column.sql.value: pa.float64(), **dict.fromkeys(numbers, _NUMBER), **dict.fromkeys(texts, _STRING)}
        rows = self._rows(column.sql, told).sort_by([(name, "ascending") for name in numbers])
        rows = rows.set_column(4, "metric_time", shapes.times(rows["metric_timestamp_ms"]))
        return lists(self._owners, rows, column.shape.type)

    def datasets(self, column: Column) -> pa.Array:
        """The data sets that a run read, with the tags of their use."""
        uses = (
            "FROM inputs i JOIN datasets d ON i.source_id = d.dataset_uuid "
            f"WHERE i.destination_type = 'RUN' AND i.destination_id IN ({self._among})"
        )
        names = ("name", "digest", "dataset_source_type", "dataset_source", "dataset_schema", "dataset_profile")
        sql = f"SELECT i.destination_id, {', '.join('d.' + name for name in names)}, i.input_uuid {uses}"
        rows = self._db.table(sql, pa.schema([(name, _STRING) for name in ("owner", *names, "input")]))
        inputs = rows["input"].combine_chunks()
        sql = f"SELECT c.input_uuid, c.name, c.value FROM input_tags c WHERE c.input_uuid IN (SELECT i.input_uuid {uses})"
        schema = pa.schema([(name, _STRING) for name in ("owner", "key", "value")])
        tags = maps(inputs, self._db.table(sql, schema) if len(rows) else schema.empty_table(), shapes.STRINGS)
        return lists(self._owners, rows.drop(["input"]).append_column("tags", tags), column.shape.type)

    def models(self, column: Column) -> pa.Array:
        """The logged models that a run read, or made with their step."""
        way = "INPUT" if column.shape is shapes.MODELS else "OUTPUT"
        sql = (
            f"SELECT i.source_id, i.destination_id, i.step FROM inputs i WHERE i.source_type = 'RUN_{way}' "
            f"AND i.destination_type = 'MODEL_{way}' AND i.source_id IN ({self._among})"
        )
        rows = self._db.table(sql, pa.schema([("owner", _STRING), ("id", _STRING), ("step", _NUMBER)]))
        return lists(self._owners, rows, column.shape.type)

    def _rows(self, pairs: Pairs, values: Mapping[str, pa.DataType]) -> pa.Table:
        """The rows of a table with the things' keys: owner, key, values."""
        names = [*self._keys, quoted(pairs.key, self._db), *values]
        sql = f"SELECT {', '.join('c.' + name for name in names)} FROM {pairs.table} c WHERE c.{self._keys[0]} IN ({self._among})"
        types = [*((name, _STRING) for name in self._keys), ("key", _STRING), *values.items()]
        rows = self._db.table(sql, pa.schema(types))
        return pa.table([_joined(rows, self._keys), rows["key"], *(rows[name] for name in values)], names=["owner", "key", *values])


def _joined(rows: pa.Table, keys: Sequence[str]) -> pa.ChunkedArray:
    """What identifies the things, in one column."""
    parts = [rows[name].cast(_STRING) for name in keys]
    return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "/")


_NESTED = {
    shapes.PAIRS: _Nested.pairs,
    shapes.NUMBERED: _Nested.pairs,
    shapes.LATEST_VALUES: _Nested.latest_values,
    shapes.AGGREGATED: _Nested.aggregates,
    shapes.MEASURED: _Nested.points,
    shapes.DATA: _Nested.datasets,
    shapes.MODELS: _Nested.models,
    shapes.STEPPED_MODELS: _Nested.models,
}


def _is_plain(column: Column) -> bool:
    return column.shape not in _NESTED
