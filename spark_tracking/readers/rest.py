"""Reading a tracking server over MLflow's REST API.

Runs are paged by their start, not by page tokens: tokens of MLflow's server are offsets, and a run that is deleted in
between would move others past them. The next page asks for what started at the last run's millisecond or later and drops
what it has already seen. Tokens only lead through more than 50,000 runs of one millisecond.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import pyarrow as pa

from spark_tracking.errors import InvalidInput, NotFound
from spark_tracking.readers import rest_json
from spark_tracking.readers.base import DERIVED, Reader
from spark_tracking.readers.filters import parse
from spark_tracking.readers.query import EVERYTHING, Query, Range
from spark_tracking.readers.rest_http import Http
from spark_tracking.readers.rest_json import Json
from spark_tracking.readers.streams import interleaved

PAGE_RUNS = 2_000
PAGE_KEYS = 200_000
FIRST_RUNS = 500
LARGEST_PAGE = 50_000
PAGE_POINTS = 25_000
PAGE_OTHERS = 1_000
PAGE_MODELS = 50
PAGE_FEW = 20
EXPERIMENTS_PER_REQUEST = 100
PARTS = 8
AT_ONCE = 4
PROBES = 12
_VIEWS = {"active_only": "ACTIVE_ONLY", "deleted_only": "DELETED_ONLY", "all": "ALL"}


class RestReader(Reader):
    """Any server with MLflow's REST API: `http(s)://`, `databricks`, `azureml://` and other plug-ins."""

    def __init__(self, tracking_uri: str, requests_per_second: float | None = None) -> None:
        self._http = Http(tracking_uri, requests_per_second)

    @property
    def name(self) -> str:
        return f"the tracking server {self._http.shown}"

    def ping(self) -> None:
        self._http.post("experiments/search", {"max_results": 1}, attempts=3)

    def experiments(self, query: Query) -> dict[str, str]:
        self.ping()
        found: dict[str, str] = {}
        wanted = len(query.experiment_ids or ()) + len(query.experiment_names)
        if wanted > PAGE_FEW:  # a few pages of all of them instead of a request for each
            for page in self._list_experiments(Query("experiments_latest"), None, everything=True):
                found |= {e["experiment_id"]: e["name"] for e in page}
        for path, asked in (("experiments/get", "experiment_id"), ("experiments/get-by-name", "experiment_name")):
            for value in (query.experiment_ids or ()) if asked == "experiment_id" else query.experiment_names:
                if value in (found if asked == "experiment_id" else found.values()):
                    continue
                try:
                    experiment = self._http.get(path, **{asked: value})["experiment"]
                except (NotFound, InvalidInput):
                    continue
                found[experiment["experiment_id"]] = experiment["name"]
        return found

    def check_filter(self, query: Query) -> None:
        parse(query.spec.filter, query.filter)
        if query.version is not None or query.timestamp is not None:
            raise InvalidInput("version= and timestamp= are for lakes; a tracking server keeps no past states.")

    def split(self, query: Query, parts: int | None) -> list[Range]:
        table = DERIVED.get(query.table, query.table)
        if table not in ("runs", "runs_latest", "run_metrics_history") or parts == 1:
            return [EVERYTHING]
        if parts is None:  # no more than can each ask once a second
            parts = max(1, min(PARTS, int(self._http.requests_per_second or PARTS)))
        return Range.between(self._bounds(query, parts))

    def _bounds(self, query: Query, parts: int) -> list[int]:
        """Start times that cut the runs into parts of about equal size, from a few looks at how dense they lie."""

        def look(low: int | None, high: int | None) -> tuple[int, float] | None:
            """The first run at or after `low`, and runs per millisecond there."""
            starts = self._starts(query, low, high, 10)
            return (starts[0], len(starts) / (1 + starts[-1] - starts[0])) if starts else None

        first, last = look(None, None), self._starts(query, None, None, 1, "DESC")
        if first is None or not last or last[0] <= first[0]:
            return []
        cells: list[tuple[float, int, int, float]] = []

        def add(low: int, high: int, density: float) -> None:
            heapq.heappush(cells, (-(high - low) * density, low, high, density))

        add(first[0], last[0] + 1, first[1])
        for _ in range(PROBES):
            _, low, high, density = heapq.heappop(cells)
            middle = (low + high) // 2
            if middle == low:
                add(low, high, density)
                break
            found = look(middle, high)
            before = self._starts(query, low, middle, 1, "DESC")  # the cell ends where its runs do, however long the gap
            add(low, before[0] + 1 if before else middle, density)
            if found:
                add(found[0], high, found[1])
        cells.sort(key=lambda cell: cell[1])
        return _cut([(low, high, density) for _, low, high, density in cells], parts)

    def _batches(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        batches = self._unordered(query, part)
        if not query.ordered:
            yield from batches
            return
        table = pa.Table.from_batches(batches, query.spec.schema)
        yield from table.sort_by([(name, "ascending") for name in query.spec.order]).to_batches(PAGE_RUNS)

    def _unordered(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        if query.table in ("runs", "runs_latest"):
            for runs in self._pages_of_runs(query, part):
                yield rest_json.runs(runs, query.table)
        elif query.table == "run_metrics_history":
            yield from interleaved(self._series_of(query, part), AT_ONCE, AT_ONCE)
        elif query.table == "logged_models_latest":
            for ids in self._experiment_ids(query):
                order = [{"field_name": "creation_timestamp", "ascending": True}]
                models = {"experiment_ids": ids, "filter": query.filter, "max_results": PAGE_MODELS, "order_by": order}
                yield from map(rest_json.logged_models, self._pages("logged-models/search", "models", models))
        elif query.table == "experiments_latest":
            for page in self._list_experiments(query, query.filter):
                yield rest_json.experiments(page)
        else:
            path, key = {"registered_models_latest": ("registered-models", "registered_models")}.get(
                query.table, ("model-versions", "model_versions")
            )
            convert = rest_json.registered_models if key == "registered_models" else rest_json.model_versions
            body: dict[str, Any] = {"filter": query.filter, "max_results": PAGE_OTHERS}
            yield from map(convert, self._pages(f"{path}/search", key, body, "GET"))

    # -- runs -------------------------------------------------------------------------------------------------

    def _pages_of_runs(self, query: Query, part: Range) -> Iterator[list[Json]]:
        """The pages of a range, the next one under way; the whole key space, which is nobody's task, by several requests at once."""
        ranges = self.split(query, AT_ONCE * 2) if part == EVERYTHING else [part]
        return interleaved((partial(self._runs, query, range) for range in ranges), AT_ONCE)

    def _runs(self, query: Query, part: Range) -> Iterator[list[Json]]:
        for ids in self._experiment_ids(query):
            low, high = part.low, part.high
            seen: set[str] = set()
            count = min(PAGE_RUNS, FIRST_RUNS)
            while True:
                page, more = self._page(query, ids, low, high, count)
                fresh = [run for id, run in {run["info"]["run_id"]: run for run in page}.items() if id not in seen]
                if fresh:
                    yield fresh
                if not more:
                    break
                low = _start(page[-1])
                seen = {run["info"]["run_id"] for run in page if _start(run) == low}
                keys = sum(len(run.get("data", {}).get(kind, ())) for run in page for kind in ("metrics", "params", "tags"))
                count = max(1, min(PAGE_RUNS, PAGE_KEYS * len(page) // max(1, keys)))

    def _page(self, query: Query, ids: list[str], low: Any, high: Any, count: int) -> tuple[list[Json], bool]:
        """The next runs, at least to the end of the millisecond `low`, and whether there are more.

        A page that does not reach the next millisecond is asked for again, larger: a token would miss runs when others go.
        """

        def within(page: list[Json]) -> bool:
            return not page or _start(page[-1]) in (low, None)  # those without a start come last

        page, token = self._search_page(query, ids, low, high, count)
        while token and within(page) and count < LARGEST_PAGE:
            count = min(LARGEST_PAGE, 4 * count)
            page, token = self._search_page(query, ids, low, high, count)
        while token and within(page):
            rest, token = self._search_page(query, ids, low, high, count, token=token)
            page += rest
        return page, bool(token)

    def _starts(self, query: Query, low: int | None, high: int | None, count: int, order: str = "ASC") -> list[int]:
        """When the first or last few runs of a range started, over all experiments."""
        pages = (self._search_page(query, ids, low, high, count, order)[0] for ids in self._experiment_ids(query))
        return sorted((start for run in chain(*pages) if (start := _start(run)) is not None), reverse=order == "DESC")[:count]

    def _search_page(
        self, query: Query, ids: list[str], low: Any, high: Any, count: int, order: str = "ASC", token: str | None = None
    ) -> tuple[list[Json], str | None]:
        lows, highs = ([end for end in ends if end is not None] for ends in ((low, query.start_after), (high, query.start_before)))
        clauses = [query.filter] if query.filter and query.filter.strip() else []
        clauses += [f"attributes.start_time >= {max(lows)}"] if lows else []
        clauses += [f"attributes.start_time < {min(highs)}"] if highs else []
        body = {
            "experiment_ids": ids,
            "filter": " AND ".join(clauses) or None,
            "run_view_type": _VIEWS[query.view_type],
            "max_results": count,
            "order_by": [f"attributes.start_time {order}"],
            "page_token": token,
        }
        answer = self._http.post("runs/search", body)
        return answer.get("runs", []), answer.get("next_page_token")

    def _series_of(self, query: Query, part: Range) -> Iterator[Callable[[], Iterator[pa.RecordBatch]]]:
        """What reads each metric of each run."""
        for page in self._runs(query, part):
            for run in page:
                yield from (partial(self._series, run, metric["key"]) for metric in run.get("data", {}).get("metrics", ()))

    def _series(self, run: Json, name: str) -> Iterator[pa.RecordBatch]:
        """The history of one metric, page by page; a point that is logged in between may move others to the next page, never past it."""
        seen: set[tuple[Any, ...]] = set()
        token = None
        while True:
            answer = self._http.get(
                "metrics/get-history", run_id=run["info"]["run_id"], metric_key=name, max_results=PAGE_POINTS, page_token=token
            )
            page, token = answer.get("metrics", []), answer.get("next_page_token")
            if token or seen:
                points = {(p["timestamp"], p.get("step", 0), p["value"]): p for p in page}
                page = [p for key, p in points.items() if key not in seen]
                seen = set(points)
            if page:
                yield rest_json.points(run, name, page)
            if not token:
                return

    # -- the others -------------------------------------------------------------------------------------------

    def _experiment_ids(self, query: Query) -> Iterator[list[str]]:
        ids = query.experiment_ids
        if ids is None:
            view = query if query.view_type == "active_only" else query.of("experiments_latest")
            pages = self._list_experiments(view, None, everything=query.view_type != "active_only")
            ids = tuple(experiment["experiment_id"] for page in pages for experiment in page)
        for start in range(0, len(ids), EXPERIMENTS_PER_REQUEST):
            yield list(ids[start : start + EXPERIMENTS_PER_REQUEST])

    def _list_experiments(self, query: Query, filter: str | None, everything: bool = False) -> Iterator[list[Json]]:
        view = "ALL" if everything else _VIEWS[query.view_type]
        body = {"filter": filter, "view_type": view, "max_results": PAGE_OTHERS, "order_by": ["experiment_id ASC"]}
        wanted = None if query.experiment_ids is None or everything else set(query.experiment_ids)
        for page in self._pages("experiments/search", "experiments", body):
            yield [experiment for experiment in page if wanted is None or experiment["experiment_id"] in wanted]

    def _pages(self, path: str, key: str, body: dict[str, Any], method: str = "POST") -> Iterator[list[Json]]:
        token = None
        while True:
            asked = {**body, "page_token": token}
            answer = self._http.get(path, **asked) if method == "GET" else self._http.post(path, asked)
            if page := answer.get(key):
                yield page
            token = answer.get("next_page_token")
            if not token:
                return


def _start(run: Json) -> int | None:
    start = run["info"].get("start_time")
    return None if start is None else int(start)


def _cut(cells: list[tuple[int, int, float]], parts: int) -> list[int]:
    """Times that cut cells (from, to, density) into parts of equal weight."""
    total = sum((high - low) * density for low, high, density in cells)
    bounds: list[int] = []
    done = 0.0
    for low, high, density in cells:
        weight = (high - low) * density
        while len(bounds) < parts - 1 and done + weight >= (target := total * (len(bounds) + 1) / parts):
            bounds.append(low + round((target - done) / density))
        done += weight
    return sorted(set(bounds))
