"""Reading a tracking server over MLflow's REST API.

Runs are paged by their start, not by page tokens: tokens of MLflow's server are offsets, and a run that is deleted in
between would move others past them. The next page asks for what started at the last run's millisecond or later and drops
what it has already seen. Tokens only lead through more than 50,000 runs of one millisecond.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.errors import InvalidInput, NotFound, PermissionRefused, Unavailable
from spark_tracking.kinds.catalog import EXPERIMENT, LOGGED_MODEL, RUN
from spark_tracking.kinds.shapes import time_in_years
from spark_tracking.masking import without_secrets
from spark_tracking.readers import rest_histories
from spark_tracking.readers.pages import Json, Listing, rows_of, sound, things
from spark_tracking.readers.query import EVERYTHING, Query, Range
from spark_tracking.readers.reader import Reader, Row, in_order
from spark_tracking.readers.rest_http import Http, TooLarge
from spark_tracking.readers.schemas import TABLES
from spark_tracking.readers.streams import interleaved

PAGE_RUNS = 2_000
PAGE_KEYS = 200_000
FIRST_RUNS = 500
LARGEST_PAGE = 50_000
PAGE_OTHERS = 1_000
PAGE_MODELS = 50
PAGE_FEW = 20
EXPERIMENTS_PER_REQUEST = 100
PARTS = 8
AT_ONCE = 4
PROBES = 12
_VIEWS = {"active_only": "ACTIVE_ONLY", "deleted_only": "DELETED_ONLY", "all": "ALL"}


class RestReader(Reader):
    """Any server with MLflow's REST API: `http(s)://`, `databricks`, `azureml://` and other plug-ins.

    Attributes:
        http: what asks it.
        at_once: how many requests may be under way.
    """

    noun = "a tracking server"

    def __init__(self, tracking_uri: str, requests_per_second: float | None = None, requests_at_once: int = AT_ONCE) -> None:
        self.uri = tracking_uri
        self.http = Http(tracking_uri, requests_per_second)
        self.at_once = requests_at_once

    @property
    def name(self) -> str:
        return f"the tracking server {self.http.shown}"

    def ping(self) -> None:
        self.http.post("experiments/search", {"max_results": 1}, attempts=3)

    def experiments(self, query: Query) -> dict[str, str]:
        self.ping()
        wanted = len(query.experiment_ids or ()) + len(query.experiment_names)
        # a few pages of all of them instead of a request for each
        found = super().experiments(query) if wanted > PAGE_FEW else {}
        for path, asked in (("experiments/get", "experiment_id"), ("experiments/get-by-name", "experiment_name")):
            for value in (query.experiment_ids or ()) if asked == "experiment_id" else query.experiment_names:
                if value in (found if asked == "experiment_id" else found.values()):
                    continue
                try:
                    told = self.http.get(path, **{asked: value}).get("experiment")
                except (NotFound, InvalidInput):
                    continue
                for experiment in sound(_experiments, [told] if told else [], partial(self.refuse, "experiments_latest"))[1]:
                    found[experiment["experiment_id"]] = experiment["name"]
        return found

    def split(self, query: Query, parts: int | None) -> list[Range]:
        if query.spec.kind is not RUN or parts == 1:
            return [EVERYTHING]
        if parts is None:  # no more than can each ask once a second
            parts = max(1, min(PARTS, int(self.http.requests_per_second or PARTS)))
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

    # -- what a listing does not tell -------------------------------------------------------------------------

    def run(self, id: str) -> Row:
        """One run as a row of `runs_latest`, with the models that it read and made.

        Raises:
            NotFound: it was deleted for good.
        """
        row: Row = _runs([self.http.get("runs/get", run_id=id)["run"]], whole=True).to_pylist()[0]
        return row

    def complete(self, runs: Sequence[Row]) -> None:
        def ask(row: Row) -> None:
            told = self.run(row["run_id"])
            row.update({name: told[name] for name in ("model_inputs", "model_outputs")})

        with ThreadPoolExecutor(self.at_once) as pool:
            list(pool.map(ask, runs))

    def points_of(self, runs: Sequence[Row]) -> pa.Table:
        """By MLflow's bulk route; what is too long for it, and a server without it, is read metric by metric."""
        try:
            batches, long = rest_histories.bulk(self.http, runs, self.at_once)
        except (NotFound, InvalidInput, PermissionRefused):
            return self._points_one_by_one(runs)
        table = pa.Table.from_batches(batches, _POINTS.schema)
        if not long:
            return table
        short = table.filter(pc.invert(pc.is_in(table["run_id"], pa.array(sorted(long), pa.string()))))
        return pa.concat_tables([short, self._points_one_by_one([run for run in runs if run["run_id"] in long])])

    def _points_one_by_one(self, runs: Sequence[Row]) -> pa.Table:
        among = ", ".join("'" + run["run_id"].replace("'", "\\'") + "'" for run in runs)
        experiments = tuple({run["experiment_id"] for run in runs})
        query = Query(_POINTS.name, experiments, filter=f"attributes.run_id IN ({among})", view_type="all", ordered=False)
        return pa.Table.from_batches(self.read(query), _POINTS.schema)

    def artifact_uri(self, uri: str | None) -> str | None:
        """A path of the server's own proxy becomes its URL."""
        if uri and uri.startswith("mlflow-artifacts:/") and not uri.startswith("mlflow-artifacts://"):
            path = uri.removeprefix("mlflow-artifacts:/").lstrip("/")
            return f"{without_secrets(self.uri).rstrip('/')}/api/2.0/mlflow-artifacts/artifacts/{path}"
        return uri

    # -- listings ---------------------------------------------------------------------------------------------

    def _batches(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        batches = self._unordered(query, part)
        return in_order(batches, query) if query.ordered else batches

    def _unordered(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        if query.table == _POINTS.name:
            yield from interleaved(self._series_of(query, part), AT_ONCE, AT_ONCE)
            return
        for page in self._pages_of(query, part):
            yield sound(partial(things, query.table), page, partial(self.refuse, query.table))[0]

    def _pages_of(self, query: Query, part: Range) -> Iterator[list[Json]]:
        kind = query.spec.kind
        if kind is RUN:
            # the whole key space, which is nobody's task, by several requests at once, the next page under way
            ranges = self.split(query, AT_ONCE * 2) if part == EVERYTHING else [part]
            yield from interleaved((partial(self._runs, query, range) for range in ranges), AT_ONCE)
        elif kind is EXPERIMENT:
            yield from self._list_experiments(query.view_type, query.filter, query.experiment_ids)
        elif kind is LOGGED_MODEL:
            order = [{"field_name": "creation_timestamp", "ascending": True}]
            for ids in self._experiment_ids(query):
                asked = {"experiment_ids": ids, "filter": query.filter, "max_results": PAGE_MODELS, "order_by": order}
                yield from self._pages("logged-models/search", "models", asked)
        else:
            body = {"filter": query.filter, "max_results": PAGE_OTHERS}
            yield from self._pages(f"{kind.plural.replace('_', '-')}/search", kind.plural, body, "GET")

    # -- runs -------------------------------------------------------------------------------------------------

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
        answer = self._shrinking(lambda size: self.http.post("runs/search", {**body, "max_results": size}), count)
        runs = rows_of(answer, "runs", self.name)
        plain = [run for run in runs if _is_run(run)]
        if len(plain) < len(runs):
            sound(_runs, [run for run in runs if not _is_run(run)], partial(self.refuse, "runs_latest"))
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
            for run in sound(_runs, page, partial(self.refuse, "runs_latest"))[1]:
                for metric in (run.get("data") or {}).get("metrics", ()):
                    yield partial(rest_histories.series, self.http, run["info"], metric["key"], partial(self.refuse, _POINTS.name))

    # -- the others -------------------------------------------------------------------------------------------

    def _experiment_ids(self, query: Query) -> Iterator[list[str]]:
        ids = query.experiment_ids
        if ids is None:
            pages = self._list_experiments("active_only" if query.view_type == "active_only" else "all")
            ids = tuple(experiment["experiment_id"] for page in pages for experiment in page)
        for start in range(0, len(ids), EXPERIMENTS_PER_REQUEST):
            yield list(ids[start : start + EXPERIMENTS_PER_REQUEST])

    def _list_experiments(self, view: str, filter: str | None = None, among: Sequence[str] | None = None) -> Iterator[list[Json]]:
        body = {"filter": filter, "view_type": _VIEWS[view], "max_results": PAGE_OTHERS, "order_by": ["experiment_id ASC"]}
        for page in self._pages("experiments/search", "experiments", body):
            experiments = sound(_experiments, page, partial(self.refuse, "experiments_latest"))[1]
            yield [one for one in experiments if among is None or one["experiment_id"] in among]

    def _pages(self, path: str, key: str, body: dict[str, Any], method: str = "POST") -> Iterator[list[Json]]:
        listing = Listing(f"The listing {path} of {self.name}")
        token = None

        def ask(size: int) -> Any:
            asked = {**body, "max_results": size, "page_token": token}
            return self.http.get(path, **asked) if method == "GET" else self.http.post(path, asked)

        while True:
            answer = self._shrinking(ask, body["max_results"])
            if page := rows_of(answer, key, self.name):
                yield page
            token = listing.token(answer)
            if not token:
                return


_POINTS = TABLES["run_metrics_history"]
_runs, _experiments = (partial(things, table) for table in ("runs_latest", "experiments_latest"))


def _is_run(run: Any) -> bool:
    """Whether a run has what paging goes by."""
    try:
        data, start = run.get("data") or {}, run["info"].get("start_time")
        lists = all(isinstance(data.get(kind) or [], list) for kind in ("metrics", "params", "tags"))
        return lists and bool(run["info"]["run_id"] + "") and (start is None or time_in_years(start) is not None)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        return False


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
