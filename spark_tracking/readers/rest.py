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

from spark_tracking.errors import InvalidInput, NotFound, Unavailable
from spark_tracking.kinds.filters import parse_located
from spark_tracking.readers import rest_json
from spark_tracking.readers.base import DERIVED, Reader
from spark_tracking.readers.pages import Listing, rows_of, sound, sound_rows
from spark_tracking.readers.query import EVERYTHING, Query, Range
from spark_tracking.readers.rest_http import Http, TooLarge
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
                    told = self._http.get(path, **{asked: value}).get("experiment")
                except (NotFound, InvalidInput):
                    continue
                for experiment in sound_rows(rest_json.experiments, [told] if told else [], partial(self.refuse, "experiments_latest")):
                    found[experiment["experiment_id"]] = experiment["name"]
        return found

    def check_filter(self, query: Query) -> None:
        parse_located(query.spec.kind, query.filter)
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
        refuse = partial(self.refuse, query.table)
        if query.table in ("runs", "runs_latest"):
            for runs in self._pages_of_runs(query, part):
                yield sound(partial(rest_json.runs, table=query.table), runs, refuse)
        elif query.table == "run_metrics_history":
            yield from interleaved(self._series_of(query, part), AT_ONCE, AT_ONCE)
        elif query.table == "logged_models_latest":
            for ids in self._experiment_ids(query):
                order = [{"field_name": "creation_timestamp", "ascending": True}]
                models = {"experiment_ids": ids, "filter": query.filter, "max_results": PAGE_MODELS, "order_by": order}
                for page in self._pages("logged-models/search", "models", models):
                    yield sound(rest_json.logged_models, page, refuse)
        elif query.table == "experiments_latest":
            yield from map(rest_json.experiments, self._list_experiments(query, query.filter))
        else:
            path, key = {"registered_models_latest": ("registered-models", "registered_models")}.get(
                query.table, ("model-versions", "model_versions")
            )
            convert = rest_json.registered_models if key == "registered_models" else rest_json.model_versions
            body: dict[str, Any] = {"filter": query.filter, "max_results": PAGE_OTHERS}
            for page in self._pages(f"{path}/search", key, body, "GET"):
                yield sound(convert, page, refuse)

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
            listing = Listing(f"The list of runs of {self.name}")
            while True:
                page, more = self._page(query, ids, low, high, count)
                fresh = [run for id, run in {run["info"]["run_id"]: run for run in page}.items() if id not in seen]
                if fresh:
                    yield fresh
                if not more:
                    break
                listing.turn()
                last, low = low, _start(page[-1])
                if isinstance(last, int) and (low is None or low < last):
                    raise Unavailable(f"The list of runs of {self.name} is not in the order that was asked for; it would never end.")
                seen = {run["info"]["run_id"] for run in page if _start(run) == low}
                keys = sum(len((run.get("data") or {}).get(kind) or ()) for run in page for kind in ("metrics", "params", "tags"))
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
        listing = Listing(f"The list of runs of {self.name}")
        while token and within(page):
            listing.token({"next_page_token": token})
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
        answer = self._shrinking(lambda size: self._http.post("runs/search", {**body, "max_results": size}), count)
        runs = rows_of(answer, "runs", self.name)
        plain = [run for run in runs if _is_run(run)]
        if len(plain) < len(runs):
            sound_rows(_checked_runs, [run for run in runs if not _is_run(run)], partial(self.refuse, "runs_latest"))
        return plain, answer.get("next_page_token")

    def _shrinking(self, ask: Callable[[int], Any], size: int) -> Any:
        """An answer of at most `size` rows, of fewer where it would be too large."""
        while True:
            try:
                return ask(size)
            except TooLarge:
                if size == 1:
                    raise
                size = max(1, size // 8)

    def _series_of(self, query: Query, part: Range) -> Iterator[Callable[[], Iterator[pa.RecordBatch]]]:
        """What reads each metric of each run."""
        for page in self._runs(query, part):
            for run in sound_rows(_checked_runs, page, partial(self.refuse, "runs_latest")):
                yield from (partial(self._series, run, metric["key"]) for metric in run.get("data", {}).get("metrics", ()))

    def _series(self, run: Json, name: str) -> Iterator[pa.RecordBatch]:
        """The history of one metric, page by page; a point that is logged in between may move others to the next page, never past it."""
        seen: set[tuple[Any, ...]] = set()
        token = None
        id = run["info"]["run_id"]
        listing = Listing(f"The history of '{name}' of run {id} on {self.name}")
        convert = partial(rest_json.points, run, name)

        def refuse(point: str, reason: str) -> None:
            self.refuse("run_metrics_history", f"{id}, a point of '{name}'", reason)

        while True:
            asked = {"run_id": id, "metric_key": name, "max_results": PAGE_POINTS, "page_token": token}
            answer = self._http.get("metrics/get-history", **asked)
            page, token = rows_of(answer, "metrics", self.name), listing.token(answer)
            if token or seen:
                page = sound_rows(convert, page, refuse) if not all(map(_is_point, page)) else page
                points = {(p["timestamp"], p.get("step", 0), p["value"]): p for p in page}
                page = [p for key, p in points.items() if key not in seen]
                seen = set(points)
            if page:
                yield sound(convert, page, refuse)
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
            page = sound_rows(rest_json.experiments, page, partial(self.refuse, "experiments_latest"))
            yield [experiment for experiment in page if wanted is None or experiment["experiment_id"] in wanted]

    def _pages(self, path: str, key: str, body: dict[str, Any], method: str = "POST") -> Iterator[list[Json]]:
        listing = Listing(f"The listing {path} of {self.name}")
        token = None

        def ask(size: int) -> Any:
            asked = {**body, "max_results": size, "page_token": token}
            return self._http.get(path, **asked) if method == "GET" else self._http.post(path, asked)

        while True:
            answer = self._shrinking(ask, body["max_results"])
            if page := rows_of(answer, key, self.name):
                yield page
            token = listing.token(answer)
            if not token:
                return


_checked_runs = partial(rest_json.runs, table="runs_latest")


def _is_run(run: Any) -> bool:
    """Whether a run has what paging goes by."""
    try:
        data, start = run.get("data") or {}, run["info"].get("start_time")
        lists = all(isinstance(data.get(kind) or [], list) for kind in ("metrics", "params", "tags"))
        return lists and bool(run["info"]["run_id"] + "") and (start is None or rest_json.time(start) is not None)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        return False


def _is_point(point: Any) -> bool:
    return isinstance(point, dict) and not any(isinstance(point.get(name), (dict, list, type(None))) for name in ("timestamp", "value"))


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
