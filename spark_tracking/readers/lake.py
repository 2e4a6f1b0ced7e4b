"""Reading a lake: its Delta tables, with what is not in them yet."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone

import pyarrow as pa

from spark_tracking.errors import InvalidInput, NotFound
from spark_tracking.kinds import lake_sql
from spark_tracking.kinds.filters import parse_located
from spark_tracking.lake import Lake
from spark_tracking.readers.base import DERIVED, Reader
from spark_tracking.readers.query import EVERYTHING, Key, Query, Range
from spark_tracking.readers.schemas import TABLES
from spark_tracking.uri import LakeUri

ROWS_PER_PART = 20_000
MAX_PARTS = 32
RUNS_PER_SCAN = 1_000
BATCH_ROWS = 10_000

_KEYS = {"runs": "run_id", "runs_latest": "run_id", "run_metrics_history": "run_id", "logged_models_latest": "model_id"}


class LakeReader(Reader):
    """A lake, read as of each call, or as of the query's version or timestamp."""

    def __init__(self, uri: str) -> None:
        self._uri = LakeUri.parse(uri)
        self._lake = Lake.open(self._uri)

    @property
    def name(self) -> str:
        return f"the lake {self._uri}"

    def ping(self) -> None:
        """Nothing: a lake that is not there was found out when it was opened."""

    def experiments(self, query: Query) -> dict[str, str]:
        names = lake_sql.one_of("name", query.experiment_names)
        where = f"{lake_sql.one_of('experiment_id', query.experiment_ids or ())} OR {names}"
        found = self._lake.scan("experiments_latest", ["experiment_id", "name"], where).read_all()
        return dict(zip(found["experiment_id"].to_pylist(), found["name"].to_pylist()))

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
        wanted = parts or min(MAX_PARTS, 1 + len(keys) // ROWS_PER_PART)
        if parts is None and query.table == "run_metrics_history":
            wanted = min(MAX_PARTS, 1 + len(keys) // 64)
        return Range.between(quantiles(keys, wanted))

    def _batches(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        if query.table == "run_metrics_history":
            yield from self._points(query, part)
            return
        source = "runs_latest" if query.table == "runs" else query.table
        rows = self._scan(query.of(source), query.spec.schema.names, part)
        yield from _sorted(rows, query) if query.ordered else rows

    def _points(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        runs = self._scan(query.of("runs_latest"), ["run_id"], part).read_all()["run_id"].cast(pa.string()).sort()
        as_of = _time(query.timestamp)
        for start in range(0, len(runs), RUNS_PER_SCAN):
            ids = runs.slice(start, RUNS_PER_SCAN).to_pylist()
            where = f"run_id >= {lake_sql.quote(ids[0])} AND run_id <= {lake_sql.quote(ids[-1])} AND {lake_sql.one_of('run_id', ids)}"
            rows = self._lake.scan("run_metrics_history", query.spec.schema.names, where, as_of=as_of)
            yield from _sorted(rows, query) if query.ordered else rows

    def _scan(self, query: Query, columns: list[str], part: Range) -> pa.RecordBatchReader:
        predicate = lake_sql.all_of(lake_sql.predicate(parse_located(query.spec.kind, query.filter)), *_conditions(query, part))
        where = None if predicate == "true" else predicate
        try:
            return self._lake.scan(query.table, columns, where, version=query.version, as_of=_time(query.timestamp))
        except NotFound as error:
            raise NotFound(f"{error.message} (version={query.version} of '{query.table}' in {self.name})") from error


_STORED = [name for name in TABLES if name.endswith("_latest") or name in ("runs", "run_metrics_history")]


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
        yield from (
            lake_sql.in_time("start_time", sign, ms)
            for sign, ms in ((">=", query.start_after), ("<", query.start_before))
            if ms is not None
        )
    key = _KEYS.get(query.table)
    if key:
        yield from (f"{key} {sign} {_literal(end)}" for sign, end in ((">=", part.low), ("<", part.high)) if end is not None)


def _literal(key: Key) -> str:
    return lake_sql.quote(str(key))


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, timezone.utc)


def _sorted(rows: pa.RecordBatchReader, query: Query) -> list[pa.RecordBatch]:
    table = rows.read_all().cast(query.spec.schema)  # DataFusion gives string views, which cannot be sorted
    batches: list[pa.RecordBatch] = table.sort_by([(name, "ascending") for name in query.spec.order]).to_batches(BATCH_ROWS)
    return batches


def quantiles(keys: pa.ChunkedArray, parts: int) -> list[Key]:
    """At most `parts - 1` different keys that cut sorted ones into equal parts."""
    steps = [len(keys) * i // parts for i in range(1, parts)] if len(keys) else []
    cuts: set[Key] = {keys[step].as_py() for step in steps}
    return sorted(cuts, key=str)
