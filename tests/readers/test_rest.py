"""Reading over REST: complete while others write, patient with a busy server, honest about one that says no."""

from __future__ import annotations

import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from spark_tracking import read
from spark_tracking.errors import InvalidInput, InvalidUri, NotFound, PermissionRefused, Unavailable
from spark_tracking.readers import open_reader, rest, rest_histories, rest_http
from spark_tracking.readers.query import Query
from tests.servers import mlflow_server

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Fault = Callable[[BaseHTTPRequestHandler], bool]


class Proxy:
    """Stands before a real server; `fault` may answer in its place, by returning True.

    Attributes:
        url: where to reach it.
        times: when each search for runs came.
        paths: what was asked for, without parameters.
    """

    def __init__(self, target: str) -> None:
        proxy = self
        self.fault: Fault = lambda handler: False
        self.times: list[float] = []
        self.paths: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.paths.append(self.path.split("?")[0].split("mlflow/")[-1])
                if self.path.endswith("runs/search"):
                    proxy.times.append(time.monotonic())
                if proxy.fault(self):
                    return
                request = urllib.request.Request(
                    target + self.path, body or None, {"Content-Type": "application/json"}, method=self.command
                )
                try:
                    with urllib.request.urlopen(request) as answer:
                        status, content = answer.status, answer.read()
                except urllib.error.HTTPError as error:
                    status, content = error.code, error.read()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = _pass_on

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for the tests that write."""
    folder = tmp_path_factory.mktemp("own")
    with mlflow_server(f"sqlite:///{folder / 'mlflow.db'}", folder) as server:
        yield server.url


@pytest.fixture
def own_proxy(own_server: str) -> Iterator[Proxy]:
    proxy = Proxy(own_server)
    yield proxy
    proxy.close()


@pytest.fixture
def proxy(server_uri: str) -> Iterator[Proxy]:
    proxy = Proxy(server_uri)
    yield proxy
    proxy.close()


def answer(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> bool:
    handler.send_response(status)
    for name, value in {"Content-Length": "0", **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    return True


def once(fault: Fault, path: str = "runs/search") -> Fault:
    """The fault for the first request to a path only."""
    waiting = [fault]
    return lambda handler: handler.path.endswith(path) and bool(waiting) and waiting.pop()(handler)


def cut(handler: BaseHTTPRequestHandler) -> bool:
    handler.connection.close()
    return True


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_request_that_may_succeed_later_is_tried_again(proxy: Proxy, status: int) -> None:
    proxy.fault = once(lambda handler: answer(handler, status, {}))
    assert read("runs", tracking_uri=proxy.url).read_all().num_rows == 10


def test_a_cut_connection_is_tried_again(proxy: Proxy) -> None:
    proxy.fault = once(cut)
    assert read("runs", tracking_uri=proxy.url).read_all().num_rows == 10


def test_a_server_that_is_away_for_seconds_is_waited_for(proxy: Proxy) -> None:
    query = Query("runs", ordered=False)
    reader = open_reader(proxy.url)
    back = time.monotonic() + 3
    proxy.fault = lambda handler: time.monotonic() < back and cut(handler)
    assert sum(batch.num_rows for batch in reader.read(query)) == 10
    assert time.monotonic() > back


def test_retry_after_is_obeyed_by_all_requests(proxy: Proxy) -> None:
    proxy.fault = once(lambda handler: answer(handler, 429, {"Retry-After": "2"}))
    read("runs", tracking_uri=proxy.url).read_all()
    assert proxy.times[1] - proxy.times[0] >= 2


def test_the_request_rate_is_kept(proxy: Proxy) -> None:
    read("runs", tracking_uri=proxy.url, requests_per_second=10).read_all()
    assert len(proxy.times) > 5
    assert (len(proxy.times) - 1) / (proxy.times[-1] - proxy.times[0]) <= 11


def test_tasks_of_spark_share_the_request_rate(spark: SparkSession, proxy: Proxy) -> None:
    read = spark.read.format("mlflow").options(tracking_uri=proxy.url, requests_per_second=20, partitions=4)
    assert read.load("runs").count() == 10
    assert len(proxy.times) > 8
    assert (len(proxy.times) - 1) / (proxy.times[-1] - proxy.times[0]) <= 21


def test_credentials_that_are_renewed_outlive_a_long_read(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "PAGE_RUNS", 2)
    tokens = [f"token {i}" for i in range(1000)]
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", tokens[0])

    def rotate(handler: BaseHTTPRequestHandler) -> bool:  # each token is good for one request
        if handler.headers.get("Authorization") != f"Bearer {tokens.pop(0)}":
            return answer(handler, 401, {})
        os.environ["MLFLOW_TRACKING_TOKEN"] = tokens[0]
        return False

    proxy.fault = rotate
    query = Query("runs", ordered=False)
    assert sum(batch.num_rows for batch in open_reader(proxy.url).read(query, rest.Range(None, 2 * 10**12))) == 10
    assert len(tokens) < 996


def test_a_token_that_ends_during_a_read_is_told_with_the_remedy(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "PAGE_RUNS", 2)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2")
    proxy.fault = lambda handler: len(proxy.times) > 3 and answer(handler, 401, {})
    with pytest.raises(PermissionRefused, match="use a service principal for long reads") as caught:
        list(open_reader(proxy.url).read(Query("runs", ordered=False), rest.Range(None, 2 * 10**12)))
    assert "hunter2" not in str(caught.value)


def test_a_refusal_is_final_and_says_what_to_do(proxy: Proxy) -> None:
    proxy.fault = lambda handler: answer(handler, 401, {})
    with pytest.raises(PermissionRefused, match="MLFLOW_TRACKING_TOKEN"):
        read("runs", tracking_uri=proxy.url)


def test_a_server_that_is_not_there_is_found_out_at_once() -> None:
    begin = time.monotonic()
    with pytest.raises(Unavailable, match="did not answer"):
        read("runs", tracking_uri="http://127.0.0.1:9")
    assert time.monotonic() - begin < 10


def test_a_user_and_password_in_the_uri_are_not_repeated() -> None:
    with pytest.raises(Unavailable) as caught:
        read("runs", tracking_uri="http://me:hunter2@127.0.0.1:9")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "foo", "/no/lake", "mssql://h/db"])
def test_what_no_reader_knows_is_refused_with_what_is_known(uri: str) -> None:
    with pytest.raises(InvalidUri, match="Expected a lake"):
        read("runs", tracking_uri=uri)


def test_credentials_that_are_not_there_are_said_to_be_missing_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(PermissionRefused, match="finds no credentials for databricks here"):
        read("runs", tracking_uri="databricks")


def test_pages_are_complete_and_distinct_while_runs_come_and_go(own_server: str, own_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "PAGE_RUNS", 3)
    client = MlflowClient(own_server)
    experiment = client.create_experiment(f"pages {time.time()}")
    ids = [client.create_run(experiment, start_time=1000 + i // 5).info.run_id for i in range(20)]  # five start together
    doomed = ids[0:3]

    def meanwhile(handler: BaseHTTPRequestHandler) -> bool:
        if handler.path.endswith("runs/search") and doomed and len(own_proxy.times) > 2:
            client.delete_run(doomed.pop())
            client.create_run(experiment, start_time=1001)
        return False

    own_proxy.fault = meanwhile
    query = Query("runs", experiment_ids=(experiment,), ordered=False)
    found = [id for batch in open_reader(own_proxy.url).read(query, rest.Range(None, 10_000)) for id in batch["run_id"].to_pylist()]
    assert len(found) == len(set(found))
    assert set(ids[3:]) <= set(found)
    assert not doomed


@pytest.mark.parametrize("largest", [4, 50_000])
def test_runs_that_started_together_are_all_read(own_server: str, monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    monkeypatch.setattr(rest, "PAGE_RUNS", 3)
    monkeypatch.setattr(rest, "LARGEST_PAGE", largest)
    client = MlflowClient(own_server)
    experiment = client.create_experiment(f"together {time.time()}")
    ids = [client.create_run(experiment, start_time=start).info.run_id for start in [1] * 10 + [2] * 10 + [3]]
    found = read("runs", tracking_uri=own_server, experiment_ids=[experiment]).read_all()["run_id"].to_pylist()
    assert found == sorted(ids)


def test_a_history_longer_than_a_page_is_whole(own_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_histories, "PAGE_POINTS", 100)
    client = MlflowClient(own_server)
    experiment = client.create_experiment(f"long {time.time()}")
    run = client.create_run(experiment)
    client.log_batch(run.info.run_id, [Metric("loss", i / 7, 1000 + i, i) for i in range(950)])
    history = read("run_metrics_history", tracking_uri=own_server, experiment_ids=[experiment]).read_all()
    assert history["metric_step"].to_pylist() == list(range(950))


def test_a_long_history_is_never_held_as_a_whole(own_server: str, own_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_histories, "PAGE_POINTS", 50)
    client = MlflowClient(own_server)
    experiment = client.create_experiment(f"endless {time.time()}")
    run = client.create_run(experiment)
    for start in (0, 1000):
        client.log_batch(run.info.run_id, [Metric("loss", i / 7, 1000 + i, i) for i in range(start, start + 1000)])
    query = Query("run_metrics_history", experiment_ids=(experiment,), ordered=False)
    batches = open_reader(own_proxy.url).read(query)
    rows = next(batches).num_rows
    time.sleep(1)
    assert own_proxy.paths.count("metrics/get-history") <= 1 + rest.AT_ONCE + 1
    assert rows + sum(batch.num_rows for batch in batches) == 2000


def test_many_experiments_are_looked_up_in_pages_and_asked_for_in_portions(
    own_server: str, own_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "EXPERIMENTS_PER_REQUEST", 10)
    client = MlflowClient(own_server)
    ids = [client.create_experiment(f"many {i} {time.time()}") for i in range(25)]
    client.delete_experiment(ids[3])
    runs = {client.create_run(id).info.run_id for id in ids[:3] + ids[4:]}
    found = read("runs", tracking_uri=own_proxy.url, experiment_ids=ids, view_type="all").read_all()
    assert set(found["run_id"].to_pylist()) == runs
    assert "experiments/get" not in own_proxy.paths
    with pytest.raises(NotFound, match="no experiment with id 987654, name 'nobody'"):
        read("runs", tracking_uri=own_proxy.url, experiment_ids=[*ids, 987654], experiment_names=["nobody"])


def test_parts_by_time_are_of_like_size_when_most_runs_come_in_a_burst(own_server: str) -> None:
    client = MlflowClient(own_server)
    experiment = client.create_experiment(f"burst {time.time()}")
    year = 365 * 86_400_000
    for start in [1, year, *range(2 * year, 2 * year + 60), 50 * year]:
        client.create_run(experiment, start_time=start)
    reader = open_reader(own_server)
    query = Query("runs", experiment_ids=(experiment,), ordered=False)
    sizes = [sum(batch.num_rows for batch in reader.read(query, part)) for part in reader.split(query, 4)]
    assert sum(sizes) == 63
    assert max(sizes) <= 31


def test_a_filter_that_does_not_parse_never_reaches_the_server(proxy: Proxy) -> None:
    with pytest.raises(InvalidInput, match="at position 19"):
        read("runs", tracking_uri=proxy.url, filter="metrics.a > 1 AND b ! 2")
    assert proxy.times == []


def test_retry_after_may_be_a_date() -> None:
    from email.utils import formatdate

    assert 3 < rest_http._retry_after(formatdate(time.time() + 5, usegmt=True)) <= 5
    assert rest_http._retry_after("nonsense") is None
