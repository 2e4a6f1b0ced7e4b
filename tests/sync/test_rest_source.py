"""From a real `mlflow server` into a lake: exact, in few requests, and not stopped by what servers and networks do."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from spark_tracking.mirror import sync
from spark_tracking.readers import rest, rest_histories
from tests.servers import mlflow_server
from tests.sync.conftest import T0, shown, write_history
from tests.sync.proxy import Proxy

LONG = 2_500


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The long run's points take several pages by either route."""
    monkeypatch.setattr(rest_histories, "POINTS_A_REQUEST", 2_000)
    monkeypatch.setattr(rest_histories, "PAGE_POINTS", 1_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the history, and a run whose metric does not fit into one page."""
    folder = tmp_path_factory.mktemp("served")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    write_history(uri, folder / "artifacts")
    client = MlflowClient(uri)
    long = client.create_run("1", run_name="long", start_time=T0 + 50).info.run_id
    for start in range(0, LONG, 1000):
        client.log_batch(long, [Metric("long", float(i), T0 + i, i) for i in range(start, min(start + 1000, LONG))])
    with mlflow_server(uri, folder) as (url, _):
        yield url


@pytest.fixture(scope="module")
def expected(server: str) -> dict[str, Any]:
    return shown(server)


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    with Proxy(server) as proxy:
        yield proxy


def test_everything_arrives_in_bulk_and_the_second_time_takes_one_listing(proxy: Proxy, expected: dict[str, Any], lake_uri: str) -> None:
    result = sync(proxy.url, lake_uri)
    assert result.ok, result.failures
    assert shown(lake_uri) == expected
    assert result.points == 6 * 8 + 1 + LONG
    bulk = [request for request in proxy.requests if "get-history" in request]
    assert 7 <= len(bulk) <= 10  # four metrics of all runs, and the pages of the long one
    proxy.requests.clear()
    again = sync(proxy.url, lake_uri)
    assert (again.wrote, again.failures) == (0, [])
    kinds = {request.rpartition(" ")[2] for request in proxy.requests}
    assert kinds <= {"experiments/search", "runs/search", "logged-models/search", "registered-models/search", "model-versions/search"}


FAULTS = ["429", "500", "half a page", "half an answer", "cut", "no bulk route"]


@pytest.mark.parametrize("kind", FAULTS)
def test_a_server_that_falters_is_asked_again(kind: str, proxy: Proxy, expected: dict[str, Any], lake_uri: str) -> None:

    def fault(handler: Any, passed_on: Any) -> bool:
        if kind == "no bulk route":
            if "get-history-bulk" in handler.path:
                handler.answer(404, b"<html>Not Found</html>")
                return True
            return False
        if len(proxy.requests) % 3:
            return False
        if kind == "429":
            handler.answer(429, b"{}", {"Retry-After": "0"})
        elif kind == "500":
            handler.answer(500, b'{"error_code": "INTERNAL_ERROR"}')
        elif kind == "cut":
            handler.cut()
        else:
            status, content = passed_on()
            half = content[: len(content) // 2]
            handler.answer(status, half, length=len(content) if kind == "half a page" else None)
        return True

    proxy.fault = fault
    result = sync(proxy.url, lake_uri, requests_at_once=2)
    assert result.ok, result.failures
    assert shown(lake_uri) == expected
    proxy.fault = lambda handler, passed_on: False
    assert sync(proxy.url, lake_uri).wrote == 0


def test_a_page_token_that_comes_twice_neither_loses_nor_doubles(
    proxy: Proxy, expected: dict[str, Any], lake_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "PAGE_OTHERS", 1)
    repeated: set[str] = set()

    def fault(handler: Any, passed_on: Any) -> bool:
        if "get-history-bulk" in handler.path:
            handler.answer(404)
            return True
        query = parse_qs(handler.path.partition("?")[2])
        token = (query.get("page_token") or [json.loads(handler.body or b"{}").get("page_token")])[0]
        if not token or handler.path + token in repeated:
            return False
        repeated.add(handler.path + token)
        status, content = passed_on()
        handler.answer(status, json.dumps({**json.loads(content), "next_page_token": token}).encode())
        return True

    proxy.fault = fault
    assert sync(proxy.url, lake_uri).ok
    assert shown(lake_uri) == expected
    assert len(repeated) >= 4


def test_a_run_that_vanishes_between_listing_and_copying_is_reported_and_the_others_arrive(
    proxy: Proxy, server: str, expected: dict[str, Any], lake_uri: str
) -> None:
    doomed = MlflowClient(server).search_runs(["1"], "attributes.run_name = 'run 3'")[0].info.run_id

    def fault(handler: Any, passed_on: Any) -> bool:
        if "runs/get" in handler.path and doomed in handler.path:
            handler.answer(404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "gone"}')
            return True
        return False

    proxy.fault = fault
    result = sync(proxy.url, lake_uri)
    assert [(f.kind, f.id) for f in result.failures] == [("run", doomed)]
    assert "gone" in result.failures[0].reason
    assert doomed not in shown(lake_uri)["runs"] and len(shown(lake_uri)["runs"]) == 6
    proxy.fault = lambda handler, passed_on: False
    assert sync(proxy.url, lake_uri).ok  # the next sync tries it again
    assert shown(lake_uri) == expected


def test_no_more_requests_than_were_allowed(proxy: Proxy, lake_uri: str) -> None:
    begin = time.monotonic()
    assert sync(proxy.url, lake_uri, experiments=["gone"], models="none", requests_per_second=10).ok
    assert len(proxy.requests) <= (time.monotonic() - begin) * 10 + 2


def test_a_point_behind_the_latest_step_is_found_by_verify(server: str, lake_uri: str) -> None:
    client = MlflowClient(server)
    assert sync(server, lake_uri).ok
    run = client.search_runs(["1"], "attributes.run_name = 'run 4'")[0].info.run_id
    client.log_metric(run, "acc", 9.0, timestamp=T0 - 5, step=1)
    assert sync(server, lake_uri).wrote == 0
    found = sync(server, lake_uri, verify=True)
    assert (found.points, found.wrote) == (1, 1)
    assert shown(lake_uri) == shown(server)


@pytest.mark.slow
def test_a_metric_longer_than_the_server_gives_at_once(tmp_path: Path, lake_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    run = client.create_run("0", run_name="long").info.run_id
    for start in range(0, 26_000, 1000):
        client.log_batch(run, [Metric("long", float(i), T0 + i, i) for i in range(start, start + 1000)])
    with mlflow_server(uri, tmp_path) as (url, _):
        assert sync(url, lake_uri).points == 26_000
    assert shown(lake_uri)["runs"] == shown(uri)["runs"]
