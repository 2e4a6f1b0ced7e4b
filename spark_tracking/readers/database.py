"""Reading an MLflow database: MLflow's own tables, in columns, in chunks of runs that each see one state.

The tables are those of `mlflow.store.tracking.dbmodels.models` and `mlflow.store.model_registry.dbmodels.models`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.errors import InvalidInput, NotFound, PermissionRefused
from spark_tracking.kinds import shapes
from spark_tracking.kinds.filters import parse_located
from spark_tracking.readers.assemble import lists, maps, times
from spark_tracking.readers.base import DERIVED, Reader
from spark_tracking.readers.database_rows import MODEL, MODEL_STATUS, NUMBER_PAIR, PAIR, RUN, batch_of, schema_of, text_of, with_nan
from spark_tracking.readers.database_sql import conditions, quoted
from spark_tracking.readers.pages import printable, reason
from spark_tracking.readers.query import EVERYTHING, Query, Range
from spark_tracking.readers.sql import Database

RUNS_PER_CHUNK = 5_000
BYTES_PER_CHUNK = 64 << 20
RUNS_PER_HISTORY_CHUNK = 100
RUNS_PER_PART = 10_000
RUNS_PER_HISTORY_PART = 64
MAX_PARTS = 64
AnyRows = TypeVar("AnyRows", pa.Table, pa.RecordBatch)


class DatabaseReader(Reader):
    """An MLflow database (SQLite, PostgreSQL or MySQL)."""

    def __init__(self, uri: str) -> None:
        self._db = Database(uri)
        self._only = ""  # SQL for the one row that is wanted of a small table

    @property
    def name(self) -> str:
        return f"the MLflow database {self._db.shown}"

    def ping(self) -> None:
        self._db.table("SELECT count(*) FROM experiments", schema_of(n="i"))

    def experiments(self, query: Query) -> dict[str, str]:
        ids = [id for id in query.experiment_ids or () if id.isdigit()]
        wanted = [f"r.experiment_id IN ({', '.join(ids)})"] if ids else []
        if query.experiment_names:
            wanted.append(f"r.name IN ({', '.join(map(self._db.text, query.experiment_names))})")
        sql = f"SELECT r.experiment_id, r.name FROM experiments r WHERE {' OR '.join(wanted) or '1 = 0'}"
        found = self._db.table(sql, schema_of(id="s", name="s"))
        return dict(zip(found["id"].to_pylist(), found["name"].to_pylist()))

    def check_filter(self, query: Query) -> None:
        parse_located(query.spec.kind, query.filter)
        if query.version is not None or query.timestamp is not None:
            raise InvalidInput("version= and timestamp= are for lakes; an MLflow database keeps no past states.")

    def split(self, query: Query, parts: int | None) -> list[Range]:
        table = DERIVED.get(query.table, query.table)
        if table not in ("runs", "runs_latest", "run_metrics_history", "logged_models_latest") or parts == 1:
            return [EVERYTHING]
        source, key = ("logged_models", "model_id") if table == "logged_models_latest" else ("runs", "run_uuid")
        where = self._where(query, EVERYTHING)
        count = self._db.table(f"SELECT count(*) FROM {source} r WHERE {where}", schema_of(n="i"))["n"][0].as_py()
        size = RUNS_PER_HISTORY_PART if table == "run_metrics_history" else RUNS_PER_PART
        wanted = parts or min(MAX_PARTS, 1 + count // size)
        # In the database's own order, which is not always that of bytes.
        numbered = f"SELECT r.{key} AS k, row_number() OVER (ORDER BY r.{key}) AS n FROM {source} r WHERE {where}"
        cuts = ", ".join(str(1 + count * i // wanted) for i in range(1, wanted)) or "0"
        keys = self._db.table(f"SELECT k FROM ({numbered}) numbered WHERE n IN ({cuts}) ORDER BY k", schema_of(k="s"))
        return Range.between(list(dict.fromkeys(keys["k"].to_pylist())))

    def _batches(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        read = {
            "runs": self._runs,
            "runs_latest": self._runs,
            "run_metrics_history": self._points,
            "logged_models_latest": self._logged_models,
        }
        if query.table in read:
            yield from read[query.table](query, part)
            return
        rows = self._small_table(query)
        yield from rows.sort_by([(name, "ascending") for name in query.spec.order]).to_batches()

    def _small_table(self, query: Query) -> pa.Table:
        """All rows of a table that is read at once; where that fails, each alone, without those that cannot be read."""
        build, source, key = {
            "experiments_latest": (self._experiments, "experiments", ("experiment_id",)),
            "registered_models_latest": (self._registered_models, "registered_models", ("name",)),
            "model_versions_latest": (self._model_versions, "model_versions", ("name", "version")),
        }[query.table]
        try:
            with self._db.snapshot():
                return self._sound(build(query))
        except Exception as error:
            if isinstance(error, (NotFound, PermissionRefused)):
                raise
        tables = [query.spec.schema.empty_table()]
        columns = ", ".join(f"r.{name}" for name in key)
        for row in self._db.table(f"SELECT {columns} FROM {source} r", schema_of(**dict.fromkeys(key, "s"))).to_pylist():
            self._only = " AND ".join(f"r.{name} = {self._db.text(value or '')}" for name, value in row.items())
            try:
                with self._db.snapshot():
                    tables.append(self._sound(build(query)))
            except Exception as error:
                self.refuse(query.table, printable("/".join(map(str, row.values()))), f"The row cannot be read: {reason(error)}.")
            finally:
                self._only = ""
        return pa.concat_tables(tables)

    # -- runs -------------------------------------------------------------------------------------------------

    def _runs(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        return self._chunked(query, part, RUN, RUNS_PER_CHUNK // 5, partial(self._run_batch, query))

    def _chunked(
        self, query: Query, part: Range, schema: pa.Schema, size: int, build: Callable[[pa.Table, str], pa.RecordBatch]
    ) -> Iterator[pa.RecordBatch]:
        """The batches that `build` makes of chunks of rows; a row that it cannot make one of is left out."""
        last: str | None = None
        while True:
            try:
                with self._db.snapshot():
                    chunk, among = self._chunk(query, part, last, schema, size)
                    if not len(chunk):
                        return
                    batch = self._sound(build(chunk, among))
            except Exception as error:
                if isinstance(error, (NotFound, PermissionRefused)) or "locked" in str(error):
                    raise
                if size == 1:
                    last = self._left_out(query, part, last, schema, error)
                size = max(1, size // 8)
                continue
            yield batch  # with no transaction open while somebody else works
            last = chunk[schema.names[0]][-1].as_py()
            size = max(1, min(RUNS_PER_CHUNK, BYTES_PER_CHUNK * len(chunk) // max(1, batch.nbytes)))

    def _left_out(self, query: Query, part: Range, last: str | None, schema: pa.Schema, error: Exception) -> str:
        """The id of the next row, which is left out.

        Raises:
            SparkTrackingError: the database gives nothing at all.
        """
        chunk, _ = self._chunk(query, part, last, pa.schema([schema.field(0)]), 1)
        id = str(chunk.column(0)[0].as_py())
        self.refuse(query.table, printable(id), f"The row cannot be read: {reason(error)}.")
        return id

    def _sound(self, rows: AnyRows) -> AnyRows:
        """The rows, if their texts are texts: SQLite stores any bytes."""
        if self._db.dialect == "sqlite":
            rows.validate(full=True)
        return rows

    def _chunk(self, query: Query, part: Range, last: str | None, schema: pa.Schema, size: int) -> tuple[pa.Table, str]:
        """The next rows of `runs` or `logged_models`, and SQL for their ids."""
        source = "logged_models" if "model_id" in schema.names else "runs"
        key = schema.names[0]
        where = self._where(query, part if last is None else Range(None, part.high))
        where += f" AND r.{key} > {self._db.text(last)}" if last is not None else ""
        columns = ", ".join(f"r.{name}" for name in schema.names)
        chunk = self._db.table(f"SELECT {columns} FROM {source} r WHERE {where} ORDER BY r.{key} LIMIT {size}", schema)
        if not len(chunk):
            return chunk, ""
        low, high = (self._db.text(chunk[key][i].as_py()) for i in (0, -1))
        return chunk, f"SELECT r.{key} FROM {source} r WHERE {self._where(query, EVERYTHING)} AND r.{key} BETWEEN {low} AND {high}"

    def _run_batch(self, query: Query, chunk: pa.Table, among: str) -> pa.RecordBatch:
        owners = chunk["run_uuid"].combine_chunks()
        metrics = self._db.table(
            f"SELECT c.run_uuid, c.{self._key}, c.value, c.is_nan FROM latest_metrics c WHERE c.run_uuid IN ({among})", NUMBER_PAIR
        )
        metrics = with_nan(metrics)
        columns = {
            "run_id": owners,
            "experiment_id": chunk["experiment_id"],
            "metrics": maps(owners, metrics, pa.map_(pa.string(), pa.float64())),
            "params": self._pairs("params", owners, among),
            "tags": self._pairs("tags", owners, among),
            "start_time": times(chunk["start_time"]),
            "end_time": times(chunk["end_time"]),
            "status": chunk["status"],
            "artifact_uri": chunk["artifact_uri"],
        }
        if query.table != "runs":
            columns |= {
                "created_by": chunk["user_id"],
                "run_name": chunk["name"],
                "lifecycle_stage": chunk["lifecycle_stage"],
                "delete_time": times(chunk["deleted_time"]),
                "aggregated_metrics": lists(owners, self._aggregates(among, metrics), shapes.AGGREGATES),
                "datasets": self._datasets(owners, among),
                **self._models_of_runs(owners, among),
            }
        return batch_of(query, columns)

    @property
    def _key(self) -> str:
        return quoted("key", self._db)

    def _pairs(self, table: str, owners: pa.Array, among: str, owner: str = "run_uuid", key: str = "key", value: str = "value") -> pa.Array:
        sql = f"SELECT c.{owner}, c.{quoted(key, self._db)}, c.{value} FROM {table} c WHERE c.{owner} IN ({among})"
        return maps(owners, self._db.table(sql, PAIR), shapes.STRINGS)

    def _aggregates(self, among: str, latest: pa.Table) -> pa.Table:
        """Least, greatest and latest value of each run's metrics; NaN is left out unless there is nothing else."""
        sql = (
            f"SELECT c.run_uuid, c.{self._key}, min(c.value), max(c.value) FROM metrics c "
            f"WHERE c.run_uuid IN ({among}) AND NOT c.is_nan GROUP BY c.run_uuid, c.{self._key}"
        )
        ranges = self._db.table(sql, schema_of(id="s", key="s", low="f", high="f"))
        joined = latest.join(ranges, ["id", "key"])
        nan = pa.scalar(float("nan"))
        low, high = (joined[name].fill_null(nan) for name in ("low", "high"))
        return pa.table([joined["id"], joined["key"], low, high, joined["value"]], names=["id", "key", "low", "high", "latest"])

    def _datasets(self, owners: pa.Array, among: str) -> pa.Array:
        uses = (
            "FROM inputs i JOIN datasets d ON i.source_id = d.dataset_uuid "
            f"WHERE i.destination_type = 'RUN' AND i.destination_id IN ({among})"
        )
        names = ("name", "digest", "dataset_source_type", "dataset_source", "dataset_schema", "dataset_profile")
        sql = f"SELECT i.destination_id, {', '.join('d.' + name for name in names)}, i.input_uuid {uses}"
        rows = self._db.table(sql, schema_of(id="s", **dict.fromkeys(names, "s"), input="s"))
        tags = maps(pa.array([], pa.string()), rows.select([0, 1, 2]), shapes.STRINGS)
        if len(rows):
            inputs = f"SELECT i.input_uuid {uses}"
            tags = self._pairs("input_tags", rows["input"].combine_chunks(), inputs, "input_uuid", "name")
        return lists(owners, rows.drop(["input"]).append_column("tags", tags), shapes.DATASETS)

    def _models_of_runs(self, owners: pa.Array, among: str) -> dict[str, pa.Array]:
        def links(kind: str) -> pa.Table:
            sql = (
                f"SELECT i.source_id, i.destination_id, i.step FROM inputs i WHERE i.source_type = 'RUN_{kind}' "
                f"AND i.destination_type = 'MODEL_{kind}' AND i.source_id IN ({among})"
            )
            return self._db.table(sql, schema_of(id="s", model_id="s", step="i"))

        return {
            "model_inputs": lists(owners, links("INPUT"), pa.list_(pa.string())),
            "model_outputs": lists(owners, links("OUTPUT"), shapes.LINKS),
        }

    def _points(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        rows = schema_of(run_uuid="s", key="s", timestamp="i", step="i", value="f", is_nan="b")
        runs = schema_of(run_uuid="s", experiment_id="s")
        key = {"postgresql": f'c.{self._key} COLLATE "C"', "mysql": f"BINARY c.{self._key}"}.get(self._db.dialect, f"c.{self._key}")
        order = f" ORDER BY c.run_uuid, {key}, c.timestamp, c.step, c.value" if query.ordered else ""
        last = None
        while True:
            with self._db.snapshot():
                chunk, among = self._chunk(query, part, last, runs, RUNS_PER_HISTORY_CHUNK)
                if not len(chunk):
                    return
                columns = f"c.run_uuid, c.{self._key}, c.timestamp, c.step, c.value, c.is_nan"
                for batch in self._db.stream(f"SELECT {columns} FROM metrics c WHERE c.run_uuid IN ({among}){order}", rows):
                    which = pc.index_in(batch["run_uuid"], value_set=chunk["run_uuid"].combine_chunks())
                    yield batch_of(
                        query,
                        {
                            "run_id": batch["run_uuid"],
                            "experiment_id": chunk["experiment_id"].combine_chunks().take(which),
                            "metric_name": batch["key"],
                            "metric_time": times(batch["timestamp"]),
                            "metric_step": batch["step"],
                            "metric_value": pc.if_else(batch["is_nan"], float("nan"), batch["value"]),
                        },
                    )
            last = chunk["run_uuid"][-1].as_py()

    # -- the others -------------------------------------------------------------------------------------------

    def _experiments(self, query: Query) -> pa.Table:
        names = ("artifact_location", "lifecycle_stage", "creation_time", "last_update_time")
        columns_sql = ", ".join(f"r.{name}" for name in ("experiment_id", "name", *names))
        sql = f"SELECT {columns_sql} FROM experiments r WHERE {self._where(query, EVERYTHING)}"
        rows = self._db.table(sql, schema_of(id="s", name="s", **dict(zip(names, "ssii"))))
        updated = times(rows["last_update_time"])
        deleted = pc.equal(rows["lifecycle_stage"], "deleted")
        columns = {
            "experiment_id": rows["id"],
            "name": rows["name"],
            "create_time": times(rows["creation_time"]),
            "update_time": updated,
            "delete_time": pc.if_else(deleted, updated, None),
            "artifact_location": rows["artifact_location"],
            "lifecycle_stage": rows["lifecycle_stage"],
            "tags": self._pairs("experiment_tags", rows["id"].combine_chunks(), "SELECT experiment_id FROM experiments", "experiment_id"),
        }
        return pa.Table.from_batches([batch_of(query, columns)])

    def _logged_models(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        return self._chunked(query, part, MODEL, RUNS_PER_CHUNK, partial(self._model_batch, query))

    def _model_batch(self, query: Query, chunk: pa.Table, among: str) -> pa.RecordBatch:
        owners = chunk["model_id"].combine_chunks()
        same = ("model_id", "experiment_id", "name", "model_type", "source_run_id", "status_message", "lifecycle_stage")
        columns = {name: chunk[name] for name in same} | {
            "create_time": times(chunk["creation_timestamp_ms"]),
            "update_time": times(chunk["last_updated_timestamp_ms"]),
            "status": MODEL_STATUS.take(chunk["status"].combine_chunks()),
            "artifact_uri": chunk["artifact_location"],
            "params": self._pairs("logged_model_params", owners, among, "model_id", "param_key", "param_value"),
            "tags": self._pairs("logged_model_tags", owners, among, "model_id", "tag_key", "tag_value"),
            "metrics": self._model_metrics(owners, among),
        }
        return batch_of(query, columns)

    def _model_metrics(self, owners: pa.Array, among: str) -> pa.Array:
        names = ("metric_name", "metric_value", "metric_step", "metric_timestamp_ms", "run_id", "dataset_name", "dataset_digest")
        sql = f"SELECT c.model_id, {', '.join('c.' + n for n in names)} FROM logged_model_metrics c WHERE c.model_id IN ({among})"
        rows = self._db.table(sql, schema_of(id="s", **dict(zip(names, "sfiisss"))))
        rows = rows.sort_by([("metric_step", "ascending"), ("metric_timestamp_ms", "ascending")])
        rows = rows.set_column(4, "metric_time", times(rows["metric_timestamp_ms"]))
        return lists(owners, rows, shapes.MODEL_METRICS)

    def _registered_models(self, query: Query) -> pa.Table:
        names = ("name", "description", "creation_time", "last_updated_time")
        sql = f"SELECT {', '.join('r.' + n for n in names)} FROM registered_models r WHERE {self._where(query, EVERYTHING)}"
        rows = self._db.table(sql, schema_of(**dict(zip(names, "ssii"))))
        owners = rows["name"].combine_chunks()
        aliases = self._db.table("SELECT c.name, c.alias, c.version FROM registered_model_aliases c", schema_of(id="s", key="s", value="i"))
        columns = {
            "name": owners,
            "description": text_of(rows["description"]),
            "create_time": times(rows["creation_time"]),
            "update_time": times(rows["last_updated_time"]),
            "tags": self._pairs("registered_model_tags", owners, "SELECT name FROM registered_models", "name"),
            "aliases": maps(owners, aliases, pa.map_(pa.string(), pa.int64())),
        }
        return pa.Table.from_batches([batch_of(query, columns)])

    def _model_versions(self, query: Query) -> pa.Table:
        texts = ("name", "description", "user_id", "current_stage", "source", "storage_location", "run_id", "run_link", "status")
        numbers = ("version", "creation_time", "last_updated_time")
        names = (*texts, "status_message", *numbers)
        sql = (
            f"SELECT {', '.join('r.' + n for n in names)} FROM model_versions r "
            f"WHERE r.current_stage <> 'Deleted_Internal' AND {self._where(query, EVERYTHING)}"
        )
        rows = self._db.table(sql, schema_of(**dict.fromkeys((*texts, "status_message"), "s"), **dict.fromkeys(numbers, "i")))
        id = pc.binary_join_element_wise(rows["name"], rows["version"].cast(pa.string()), "/")
        tags = self._db.table(
            f"SELECT c.name, c.version, c.{self._key}, c.value FROM model_version_tags c",
            schema_of(name="s", version="s", key="s", value="s"),
        )
        tag_owner = pc.binary_join_element_wise(tags["name"], tags["version"], "/")
        same = ("name", "version", "current_stage", "source", "storage_location", "run_id", "run_link", "status", "status_message")
        columns = {name: rows[name] for name in same} | {
            "create_time": times(rows["creation_time"]),
            "update_time": times(rows["last_updated_time"]),
            "description": text_of(rows["description"]),
            "created_by": rows["user_id"],
            "tags": maps(
                id.combine_chunks(), pa.table([tag_owner, tags["key"], tags["value"]], names=["id", "key", "value"]), shapes.STRINGS
            ),
        }
        return pa.Table.from_batches([batch_of(query, columns)])

    def _where(self, query: Query, part: Range) -> str:
        return " AND ".join(self._conditions(query, part)) or "1 = 1"

    def _conditions(self, query: Query, part: Range) -> Iterator[str]:
        yield from conditions(parse_located(query.spec.kind, query.filter), self._db)
        kind = query.spec.kind.plural
        if self._only:
            yield self._only
        if kind in ("registered_models", "model_versions"):
            return
        if query.experiment_ids is not None:
            ids = [id for id in query.experiment_ids if id.isdigit()]
            yield f"r.experiment_id IN ({', '.join(ids)})" if ids else "1 = 0"
        if query.view_type != "all":
            yield f"r.lifecycle_stage IN ({', '.join(map(self._db.text, query.lifecycle_stages))})"
        if kind == "runs" and query.run_ids is not None:
            yield f"r.run_uuid IN ({', '.join(map(self._db.text, query.run_ids)) or 'NULL'})"
        if kind == "runs":
            ends = ((">=", query.start_after), ("<", query.start_before))
            yield from (f"r.start_time {sign} {ms}" for sign, ms in ends if ms is not None)
        key = {"runs": "run_uuid", "logged_models": "model_id"}.get(kind)
        if key:
            yield from (
                f"r.{key} {sign} {self._db.text(str(end))}" for sign, end in ((">=", part.low), ("<", part.high)) if end is not None
            )
