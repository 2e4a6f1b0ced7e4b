"""Reading a lake: its Delta tables, with what is not in them yet; and Delta tables of others in the layout of `system.mlflow`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from hashlib import blake2b

import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.address import LakeUri
from spark_tracking.delta.foreign import versions
from spark_tracking.errors import InvalidInput, LakeReadOnly, NotFound
from spark_tracking.kinds import lake_sql
from spark_tracking.kinds.filters import parse_located
from spark_tracking.lake import Lake
from spark_tracking.lake.system_tables import NAMES, SystemTables
from spark_tracking.readers.query import EVERYTHING, Query, Range
from spark_tracking.readers.reader import DERIVED, Reader, in_order
from spark_tracking.readers.schemas import TABLES

ROWS_PER_PART = 20_000
RUNS_PER_HISTORY_PART = 64
MAX_PARTS = 32
RUNS_PER_SCAN = 1_000

_KEYS = {"runs": "run_id", "runs_latest": "run_id", "run_metrics_history": "run_id", "logged_models_latest": "model_id"}
_STORED = [name for name in TABLES if name.endswith("_latest") or name in ("runs", "run_metrics_history")]


class LakeReader(Reader):
    """A lake, read as of each call, or as of the query's version or timestamp."""

    counts_points = True
    _tables: Lake | SystemTables

    def __init__(self, uri: str) -> None:
        self._uri = LakeUri.parse(uri)
        self.uri = str(self._uri)
        self._tables = self._lake = Lake.open(self._uri)
        self.lake_root = self._uri.root

    @property
    def name(self) -> str:
        return f"the lake {self._uri}"

    def ping(self) -> None:
        """Nothing: a lake that is not there was found out when it was opened."""

    def check_filter(self, query: Query) -> None:
        parse_located(query.spec.kind, query.filter)
        if query.version is not None and query.table not in _STORED:
            raise InvalidInput(f"version= is of one Delta table, and '{query.table}' is not one. Pin its state with timestamp= instead.")
        if query.version is not None and query.table == "run_metrics_history":
            raise InvalidInput("version= of run_metrics_history would say nothing about its runs. Pin both with timestamp= instead.")

    def split(self, query: Query, parts: int | None) -> list[Range]:
        table = DERIVED.get(query.table, query.table)
        key = _KEYS.get(table)
        if key is None or parts == 1:
            return [EVERYTHING]
        table = "runs_latest" if key == "run_id" else table
        keys = self._scan(query.of(table), [key], EVERYTHING).read_all()[key].cast(pa.string()).sort()
        size = RUNS_PER_HISTORY_PART if query.table == "run_metrics_history" else ROWS_PER_PART
        wanted = parts or min(MAX_PARTS, 1 + len(keys) // size)
        cuts = {keys[len(keys) * i // wanted].as_py() for i in range(1, wanted)} if len(keys) else set()
        return Range.between(sorted(cuts))

    def state(self) -> bytes | None:
        try:
            self._lake.flush()
        except LakeReadOnly:
            return None
        return self._versions("events", "run_metrics_history")

    def _versions(self, *tables: str) -> bytes | None:
        found = versions(self._uri.root, tables)
        return None if found is None else blake2b("/".join(map(str, found)).encode(), digest_size=16).digest()

    def run_count(self, experiment_ids: Sequence[str]) -> int | None:
        return self._lake.count("run", lake_sql.one_of("experiment_id", experiment_ids))

    def _point_counts(self) -> Iterator[pa.RecordBatch]:
        for batch in self._tables.scan("run_metrics_history", ["run_id"]):
            found = pc.value_counts(batch.column(0).cast(pa.string()))
            yield pa.RecordBatch.from_arrays([found.field(0), found.field(1)], ["run", "points"])

    def _batches(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        if query.table == "run_metrics_history":
            yield from self._points(query, part)
            return
        source = "runs_latest" if query.table == "runs" else query.table
        rows = self._scan(query.of(source), query.spec.schema.names, part)
        yield from in_order(rows, query) if query.ordered else rows

    def _points(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        runs = self._scan(query.of("runs_latest"), ["run_id"], part).read_all()["run_id"].cast(pa.string()).sort()
        as_of = _time(query.timestamp)
        for start in range(0, len(runs), RUNS_PER_SCAN):
            ids = runs.slice(start, RUNS_PER_SCAN).to_pylist()
            where = f"run_id >= {lake_sql.quote(ids[0])} AND run_id <= {lake_sql.quote(ids[-1])} AND {lake_sql.one_of('run_id', ids)}"
            rows = self._tables.scan("run_metrics_history", query.spec.schema.names, where, as_of=as_of)
            yield from in_order(rows, query) if query.ordered else rows

    def _scan(self, query: Query, columns: list[str], part: Range) -> pa.RecordBatchReader:
        predicate = lake_sql.all_of(lake_sql.predicate(parse_located(query.spec.kind, query.filter)), *_conditions(query, part))
        where = None if predicate == "true" else predicate
        try:
            return self._tables.scan(query.table, columns, where, version=query.version, as_of=_time(query.timestamp))
        except NotFound as error:
            raise NotFound(f"{error.message} (version={query.version} of '{query.table}' in {self.name})") from error


class SystemTablesReader(LakeReader):
    """Three Delta tables in the layout of Databricks' `system.mlflow`, wherever they lie, which are read as a lake's are."""

    def __init__(self, uri: str) -> None:
        self._uri = LakeUri.parse(uri)
        self.uri = str(self._uri)
        self._tables = SystemTables(self._uri.root)

    @property
    def name(self) -> str:
        return f"the Delta tables in {self._uri.root}"

    def state(self) -> bytes | None:
        return self._versions(*NAMES)

    def run_count(self, experiment_ids: Sequence[str]) -> int | None:
        return None


def _conditions(query: Query, part: Range) -> Iterator[str]:
    """What the query asks beside its filter, as far as the table has the columns."""
    columns = query.spec.schema.names
    if query.experiment_ids is not None and "experiment_id" in columns:
        yield lake_sql.one_of("experiment_id", query.experiment_ids)
    if query.run_ids is not None and "run_id" in columns:
        yield lake_sql.one_of("run_id", query.run_ids)
    if "lifecycle_stage" in columns and query.view_type != "all":
        yield lake_sql.one_of("lifecycle_stage", query.lifecycle_stages)
    if "start_time" in columns:
        ends = ((">=", query.start_after), ("<", query.start_before))
        yield from (lake_sql.in_time("start_time", sign, ms) for sign, ms in ends if ms is not None)
    for sign, end in ((">=", part.low), ("<", part.high)):
        if end is not None and query.table in _KEYS:
            yield f"{_KEYS[query.table]} {sign} {lake_sql.quote(str(end))}"


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
