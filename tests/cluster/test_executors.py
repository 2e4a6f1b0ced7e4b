"""Logging from tasks: batched, once, with the driver's identity. Tasks here are blocks in this process; real ones are in
test_standalone.py and below."""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING

import mlflow
import pandas as pd
import pytest

import spark_tracking
from spark_tracking.cluster import executors, place
from spark_tracking.cluster.executors import ExecutorTracking, executor_run, executor_tracking
from spark_tracking.errors import InvalidState

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture(params=["database", "lake"])
def tracking(request: pytest.FixtureRequest, lake_uri: str) -> Iterator[ExecutorTracking]:
    mlflow.set_tracking_uri(request.getfixturevalue("database") if request.param == "database" else lake_uri)
    mlflow.set_experiment("search")
    with mlflow.start_run():
        yield executor_tracking()


@pytest.fixture
def attempt(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """The context of a task whose attempt a test chooses."""
    context = types.SimpleNamespace(number=0)
    task = types.SimpleNamespace(stageId=lambda: 3, partitionId=lambda: 4, attemptNumber=lambda: context.number)
    monkeypatch.setattr(place, "task", lambda: task)
    return context


def children(tracking: ExecutorTracking) -> list[mlflow.entities.Run]:
    found = mlflow.MlflowClient(tracking.uri).search_runs([tracking.experiment_id], f"tags.mlflow.parentRunId = '{tracking.run_id}'")
    return list(found)


def points(tracking: ExecutorTracking, run_id: str, metric: str) -> list[tuple[int, float]]:
    history = mlflow.MlflowClient(tracking.uri).get_metric_history(run_id, metric)
    return sorted((point.step, point.value) for point in history)


def test_a_block_is_a_child_run_with_the_drivers_user_and_source(tracking: ExecutorTracking) -> None:
    with executor_run(tracking, key="store 7") as run:
        run.log_params({"depth": 3})
        run.log_metrics({"loss": 0.5, "accuracy": 0.9}, step=1)
        run.set_tag("team", "churn")
    (child,) = children(tracking)
    driver = mlflow.get_run(tracking.run_id)
    assert (child.info.run_name, child.info.status) == ("store 7", "FINISHED")
    assert child.data.params == {"depth": "3"}
    assert child.data.metrics == {"loss": 0.5, "accuracy": 0.9}
    assert child.data.tags["team"] == "churn"
    for name in ("mlflow.user", "mlflow.source.name", "mlflow.source.type"):
        assert child.data.tags[name] == driver.data.tags[name]
    assert child.info.user_id == driver.info.user_id


def test_every_point_arrives_however_many(tracking: ExecutorTracking) -> None:
    with executor_run(tracking, key=1) as run:
        run.log_params({f"p{i}": i for i in range(130)})
        for step in range(2_345):
            run.log_metric("loss", step / 2, step)
    assert points(tracking, run.run_id, "loss") == [(step, step / 2) for step in range(2_345)]
    assert len(mlflow.get_run(run.run_id).data.params) == 130


def test_a_block_that_fails_has_its_points_and_is_marked_failed(tracking: ExecutorTracking) -> None:
    with pytest.raises(ZeroDivisionError), executor_run(tracking, key=1) as run:  # noqa: PT012
        run.log_metric("loss", 1.0)
        raise ZeroDivisionError
    (child,) = children(tracking)
    assert child.info.status == "FAILED"
    assert points(tracking, child.info.run_id, "loss") == [(0, 1.0)]


def test_a_retried_task_leaves_one_run_with_each_point_once(tracking: ExecutorTracking, attempt: types.SimpleNamespace) -> None:
    for number in range(3):
        attempt.number = number
        with pytest.raises(OSError), executor_run(tracking, key="g") as run:  # noqa: PT012
            run.log_metric("loss", number, step=0)
            raise OSError
        assert len(children(tracking)) == 1
    attempt.number = 3
    with executor_run(tracking, key="g") as run:
        run.log_metric("loss", 3.0, step=0)
        run.log_metric("loss", 4.0, step=1)
    (child,) = children(tracking)
    assert child.info.status == "FINISHED"
    assert points(tracking, child.info.run_id, "loss") == [(0, 3.0), (1, 4.0)]


def test_a_worker_that_was_killed_leaves_no_second_run(tracking: ExecutorTracking, attempt: types.SimpleNamespace) -> None:
    block = executor_run(tracking, key="g")
    block.__enter__().log_metric("loss", 1.0)  # and never ends
    attempt.number = 1
    with executor_run(tracking, key="g") as run:
        run.log_metric("loss", 2.0)
    (child,) = children(tracking)
    assert points(tracking, child.info.run_id, "loss") == [(0, 2.0)]


def test_of_two_speculative_copies_one_stays_whichever_ends_first(tracking: ExecutorTracking, attempt: types.SimpleNamespace) -> None:
    for first, second in ((0, 1), (1, 0)):
        blocks = {}
        for number in (0, 1):
            attempt.number = number
            blocks[number] = executor_run(tracking, key=("g", first))
            blocks[number].__enter__().log_metric("loss", number)
        for number in (first, second):
            attempt.number = number
            blocks[number].__exit__(None, None, None)
    assert sorted(points(tracking, child.info.run_id, "loss") for child in children(tracking)) == [[(0, 0.0)], [(0, 1.0)]]


def test_a_failing_speculative_copy_does_not_take_the_originals_run(tracking: ExecutorTracking, attempt: types.SimpleNamespace) -> None:
    original = executor_run(tracking, key="g")
    original.__enter__().log_metric("loss", 1.0)
    attempt.number = 1
    with pytest.raises(OSError), executor_run(tracking, key="g"):
        raise OSError
    attempt.number = 0
    original.__exit__(None, None, None)
    assert [points(tracking, child.info.run_id, "loss") for child in children(tracking) if child.info.status == "FINISHED"] == [[(0, 1.0)]]


def test_work_that_is_computed_again_runs_and_logs_nothing(tracking: ExecutorTracking) -> None:
    ids = set()
    for _ in range(3):
        with executor_run(tracking, key="g") as run:
            run.log_metric("loss", 1.0)
        ids.add(run.run_id)
    (child,) = children(tracking)
    assert ids == {child.info.run_id}
    assert len(points(tracking, child.info.run_id, "loss")) == 1


def test_different_keys_are_different_runs_also_where_they_print_alike(tracking: ExecutorTracking) -> None:
    for key in (1, "1", 1.5, (1, "a"), None):
        with executor_run(tracking, key=key):
            pass
    assert len(children(tracking)) == 5


def test_the_drivers_own_run_gets_each_point_once_under_retries(tracking: ExecutorTracking, attempt: types.SimpleNamespace) -> None:
    for number in (0, 1):
        attempt.number = number
        try:
            with executor_run(tracking, key="g", child=False) as run:
                for step in range(5):
                    run.log_metric("loss", step / 10, step)
                if number == 0:
                    raise OSError
        except OSError:
            pass
    assert run.run_id == tracking.run_id
    assert points(tracking, tracking.run_id, "loss") == [(step, step / 10) for step in range(5)]
    assert not children(tracking)


def test_what_cannot_be_logged_is_refused_where_it_is_written(tracking: ExecutorTracking) -> None:
    with executor_run(tracking, key=1) as run:
        with pytest.raises(mlflow.exceptions.MlflowException, match="loss@1"):
            run.log_metric("loss@1", 1.0)
        with pytest.raises(ValueError):
            run.log_metric("loss", "high")  # type: ignore[arg-type]
        run.log_metric("loss", 1.0)
    assert points(tracking, run.run_id, "loss") == [(0, 1.0)]


def test_credentials_go_along_unseen_and_leave_no_trace(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hush")
    with mlflow.start_run():
        carried = pickle.loads(pickle.dumps(executor_tracking()))
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")  # as on a worker
    assert "hush" not in repr(carried) + str(carried)
    with executor_run(carried, key=1) as run:
        assert os.environ["MLFLOW_TRACKING_TOKEN"] == "hush"
        assert "hush" not in repr(run)
    assert "MLFLOW_TRACKING_TOKEN" not in os.environ
    assert "hush" not in str(mlflow.get_run(run.run_id).to_dictionary())


def test_without_a_run_it_says_what_to_do() -> None:
    with pytest.raises(InvalidState, match="start_run"):
        executor_tracking()


def test_the_server_sees_four_calls_of_a_task(server: str, attempt: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow.utils.rest_utils as rest

    mlflow.set_tracking_uri(server)
    with mlflow.start_run():
        tracking = executor_tracking()
    calls: list[str] = []
    send = rest._get_http_response_with_retries

    def count(method: str, url: str, *arguments: object, **options: object) -> object:
        calls.append(url.rpartition("/2.0/mlflow/")[2])
        return send(method, url, *arguments, **options)

    monkeypatch.setattr(rest, "_get_http_response_with_retries", count)
    with executor_run(tracking, key=1) as run:
        for step in range(900):
            run.log_metric("loss", 1.0, step)
        run.log_param("depth", 3)
    assert calls == ["runs/search", "runs/create", "runs/log-batch", "runs/update"]


def test_a_search_over_groups_in_real_tasks(spark: SparkSession, server: str) -> None:
    mlflow.set_tracking_uri(server)
    mlflow.set_experiment("groups")

    def fit(frame: pd.DataFrame) -> pd.DataFrame:
        group = int(frame["group"].iloc[0])
        with spark_tracking.executor_run(tracking, key=group) as run:
            run.log_param("group", group)
            for step in range(10):
                run.log_metric("loss", group / (step + 1), step)
        return pd.DataFrame({"group": [group], "run_id": [run.run_id]})

    with mlflow.start_run():
        tracking = spark_tracking.executor_tracking()
        frame = spark.range(400).selectExpr("id % 40 AS group").groupby("group").applyInPandas(fit, "group long, run_id string")
        rows = frame.collect()
        again = frame.collect()  # lazy: the tasks run a second time
    assert {row.group: row.run_id for row in rows} == {row.group: row.run_id for row in again}
    found = {run.info.run_id: run for run in children(tracking)}
    assert len(found) == 40
    assert all(found[row.run_id].data.params["group"] == str(row.group) for row in rows)
    assert all(found[row.run_id].data.metrics["loss"] == row.group / 10 for row in rows)


@pytest.mark.slow
def test_two_thousand_tasks_send_one_call_each_and_no_point_is_lost(spark: SparkSession, server: str) -> None:
    mlflow.set_tracking_uri(server)

    def work(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        import mlflow.utils.rest_utils as rest

        calls, send = [0], rest._get_http_response_with_retries

        def count(*arguments: object, **options: object) -> object:
            calls[0] += 1
            return send(*arguments, **options)

        rest._get_http_response_with_retries = count
        for batch in batches:
            number = int(batch["id"].iloc[0])
            with spark_tracking.executor_run(tracking, key=number, child=False) as run:
                for step in range(10):
                    run.log_metric("loss", number, 10 * number + step)
        rest._get_http_response_with_retries = send
        yield pd.DataFrame({"calls": calls})

    with mlflow.start_run():
        tracking = spark_tracking.executor_tracking()
        rows = spark.range(0, 2_000, 1, 2_000).mapInPandas(work, "calls long").collect()
    assert {row.calls for row in rows} == {1}
    assert points(tracking, tracking.run_id, "loss") == [(step, step // 10) for step in range(20_000)]


@pytest.mark.slow
def test_a_search_through_spark_connect_logs_as_a_classic_one(lake_uri: str) -> None:
    code = (
        "import mlflow; from spark_tracking.examples import fan_out; from spark_tracking.spark.local import local_spark; "
        f"mlflow.set_tracking_uri({lake_uri!r}); spark = local_spark('connect', connect=True); "
        "grid = fan_out.combinations(spark, 6); run = mlflow.start_run(); rows = fan_out.search(grid, rounds=2).collect(); "
        "mlflow.end_run(); print('found', run.info.run_id, len({row.run_id for row in rows}), type(spark).__module__)"
    )
    environ = {**os.environ, "SPARK_TESTING": "1"}  # a free port instead of 15002
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environ)
    assert "pyspark.sql.connect" in done.stdout, done.stderr
    parent, count = done.stdout.split("found ")[1].split()[:2]
    mlflow.set_tracking_uri(lake_uri)
    children = mlflow.search_runs(["0"], f"tags.mlflow.parentRunId = '{parent}'", output_format="list")
    assert len(children) == int(count) == 6


def test_threads_of_one_process_do_not_mix(tracking: ExecutorTracking) -> None:
    """A Ray-like fan-out: several blocks at a time in one process."""

    def work(number: int) -> None:
        with executor_run(tracking, key=number) as run:
            run.log_metric("number", number)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(12)))
    assert sorted(child.data.metrics["number"] for child in children(tracking)) == list(range(12))
    assert executors.UNIT_TAG in children(tracking)[0].data.tags
