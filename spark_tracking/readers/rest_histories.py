"""Metric histories over REST: page by page, and in bulk, one request for one metric of a hundred runs, by the route of MLflow's web UI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa

from spark_tracking.readers import pages
from spark_tracking.readers.pages import Json, Listing, Refuse, rows_of, sound
from spark_tracking.readers.rest_http import Http

PAGE_POINTS = 25_000
RUNS_A_REQUEST = 100
POINTS_A_REQUEST = 25_000
_BULK = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"


def series(http: Http, run: Json, name: str, refuse: Refuse) -> Iterator[pa.RecordBatch]:
    """The history of one metric, page by page; a point that is logged in between may move others to the next page, never past it."""
    seen: set[tuple[Any, ...]] = set()
    token = None
    listing = Listing(f"The history of '{name}' of run {run['run_id']} on the tracking server {http.shown}")
    convert = partial(pages.points, run, name)

    def refuse_point(_: str, reason: str) -> None:
        refuse(f"{run['run_id']}, a point of '{name}'", reason)

    while True:
        answer = http.get("metrics/get-history", run_id=run["run_id"], metric_key=name, max_results=PAGE_POINTS, page_token=token)
        page, token = rows_of(answer, "metrics", f"the tracking server {http.shown}"), listing.token(answer)
        if token or seen:
            page = list(sound(convert, page, refuse_point)[1]) if not all(map(_is_point, page)) else page
            points = {(p["timestamp"], p.get("step", 0), p["value"]): p for p in page}
            page = [p for key, p in points.items() if key not in seen]
            seen = set(points)
        if page:
            yield sound(convert, page, refuse_point)[0]
        if not token:
            return


def bulk(http: Http, runs: Sequence[Mapping[str, Any]], at_once: int) -> tuple[list[pa.RecordBatch], set[str]]:
    """The histories of rows of `runs_latest`, and the ids of runs that have a longer one than the route gives."""
    wanted: dict[str, dict[str, Json]] = {}
    for run in runs:
        for metric in run["aggregated_metrics"]:
            wanted.setdefault(metric["metric_name"], {})[run["run_id"]] = run
    long: set[str] = set()

    def ask(name: str, of: list[Json]) -> Iterator[pa.RecordBatch]:
        points = http.get(_BULK, run_id=[run["run_id"] for run in of], metric_key=name, max_results=POINTS_A_REQUEST)["metrics"]
        if len(points) < POINTS_A_REQUEST:
            by_run: dict[str, list[Any]] = {}
            for point in points:
                by_run.setdefault(point["run_id"], []).append(point)
            yield from (pages.points(wanted[name][id], name, found) for id, found in by_run.items())
        elif len(of) == 1:
            long.add(of[0]["run_id"])
        else:
            yield from ask(name, of[: len(of) // 2])
            yield from ask(name, of[len(of) // 2 :])

    lists = ((name, list(of.values())) for name, of in wanted.items())
    tasks = [(name, of[i : i + RUNS_A_REQUEST]) for name, of in lists for i in range(0, len(of), RUNS_A_REQUEST)]
    with ThreadPoolExecutor(at_once) as pool:
        return [batch for found in pool.map(lambda task: list(ask(*task)), tasks) for batch in found], long


def _is_point(point: Any) -> bool:
    return isinstance(point, dict) and not any(isinstance(point.get(name), (dict, list, type(None))) for name in ("timestamp", "value"))
