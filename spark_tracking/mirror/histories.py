"""Metric histories over REST in bulk: one request for one metric of a hundred runs, by the route that MLflow's web UI uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.errors import InvalidInput, NotFound, PermissionRefused
from spark_tracking.readers import rest_json
from spark_tracking.readers.schemas import TABLES

if TYPE_CHECKING:
    from spark_tracking.mirror.registers import Row
    from spark_tracking.mirror.source import Source

RUNS_A_REQUEST = 100
POINTS_A_REQUEST = 25_000
_ROUTE = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
_Runs = dict[str, "Row"]


def read(source: Source, runs: Sequence[Row]) -> pa.Table:
    """All points of some runs. What is too long for the bulk route, and a server without it, is read metric by metric."""
    wanted: dict[str, _Runs] = {}
    for run in runs:
        for metric in run["aggregated_metrics"]:
            wanted.setdefault(metric["metric_name"], {})[run["run_id"]] = run
    tasks = [(name, dict(part)) for name, of in wanted.items() for part in _parts(list(of.items()))]
    long: set[str] = set()

    def ask(task: tuple[str, _Runs]) -> list[pa.RecordBatch]:
        return list(_bulk(source, *task, long))

    try:
        with ThreadPoolExecutor(source.at_once) as pool:
            batches = [batch for found in pool.map(ask, tasks) for batch in found]
    except (NotFound, InvalidInput, PermissionRefused):
        return source.all_points(runs)
    table = pa.Table.from_batches(batches, TABLES["run_metrics_history"].schema)
    if not long:
        return table
    short = table.filter(pc.invert(pc.is_in(table["run_id"], pa.array(sorted(long), pa.string()))))
    return pa.concat_tables([short, source.all_points([run for run in runs if run["run_id"] in long])])


def _bulk(source: Source, name: str, runs: _Runs, long: set[str]) -> Iterator[pa.RecordBatch]:
    points = source.http.get(_ROUTE, run_id=list(runs), metric_key=name, max_results=POINTS_A_REQUEST)["metrics"]
    if len(points) < POINTS_A_REQUEST:
        by_run: dict[str, list[Any]] = {}
        for point in points:
            by_run.setdefault(point["run_id"], []).append(point)
        yield from (rest_json.points({"info": runs[id]}, name, of) for id, of in by_run.items())
    elif len(runs) == 1:
        long.update(runs)
    else:
        items = list(runs.items())
        for half in (items[: len(items) // 2], items[len(items) // 2 :]):
            yield from _bulk(source, name, dict(half), long)


def _parts(items: list[Any]) -> Iterator[list[Any]]:
    return (items[i : i + RUNS_A_REQUEST] for i in range(0, len(items), RUNS_A_REQUEST))
