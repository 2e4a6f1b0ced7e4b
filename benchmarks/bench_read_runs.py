"""Runs into Spark: from a lake, an MLflow database and a server, against `mlflow.search_runs` + `createDataFrame`.

    python benchmarks/bench_read_runs.py [--runs 100000] [--peer-runs 5000] [--rest-runs 20000]

Every run has 27 keys (10 metrics, 10 params, 7 tags). The peer is slow, so it reads fewer runs of an experiment of its own; rates
are compared, which favours it, since its pages grow slower with the offset. The server is one `mlflow server` with one
worker over the database; its own limit is what a bare loop of requests gets out of it, its answers thrown away.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _harness import Row, scratch, show

T0 = 1_700_000_000_000


def main() -> None:
    """Make the data, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--peer-runs", type=int, default=5_000)
    parser.add_argument("--rest-runs", type=int, default=20_000)
    asked = parser.parse_args()
    sizes = {"1": asked.runs, "2": asked.peer_runs, "3": asked.rest_runs}
    with scratch() as folder:
        database, lake = f"sqlite:///{folder / 'mlflow.db'}", f"delta://{folder / 'lake'}"
        make_database(database, sizes)
        make_lake(lake, sizes)
        rows = measure(database, lake, sizes, folder)
    show(f"Runs into Spark: {asked.runs:,} runs of 27 keys", rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"\npeak memory: this process {peak:,.0f} MB (the peer's rows), largest ended child {workers:,.0f} MB")


def measure(database: str, lake: str, sizes: dict[str, int], folder: Path) -> list[Row]:
    """One row a promise."""
    from spark_tracking.jobs.session import local_spark

    spark = local_spark("bench", memory="2g")
    peer = sizes["2"] / seconds(lambda: peer_read(spark, database, "2"))
    rows = []
    for name, uri in (("lake", lake), ("database", database)):
        noop(spark, uri, "2")  # workers have started and imported
        rate = sizes["1"] / seconds(lambda uri=uri: noop(spark, uri, "1"))
        rows.append(Row(f"runs from the {name}, noop write", peer, rate, "runs/s", ">= 50x", True))
    small = sizes["2"] / seconds(lambda: noop(spark, lake, "2"))
    rows.append(
        Row(
            f"growth: lake, {sizes['2']:,} runs -> {sizes['1']:,}",
            small,
            sizes["1"] / seconds(lambda: noop(spark, lake, "1")),
            "runs/s",
            ">= 1x",
            True,
        )
    )
    board = min(seconds(lambda: leaderboard(spark, lake)) for _ in range(3))
    rows.append(Row("leaderboard, top 10 (limit: the promise)", 1.0, board, "s", "< 1 s", limit=1.0))
    with server(database, folder / "log") as url:
        over_http = sizes["2"] / seconds(lambda: peer_read(spark, url, "2"))
        bare = sizes["2"] / seconds(lambda: bare_requests(url, "2"))
        ours = sizes["3"] / seconds(lambda: noop(spark, url, "3"))
        rows.append(Row("runs over REST from mlflow server", over_http, ours, "runs/s", ">= 5x", True, bare))
    spark.stop()
    return rows


def peer_read(spark: Any, uri: str, experiment: str) -> None:
    """What one writes today."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    frame = mlflow.search_runs([experiment], max_results=1_000_000)
    spark.createDataFrame(frame.astype({c: str for c in frame.columns if frame[c].dtype == object})).write.format("noop").mode(
        "overwrite"
    ).save()


def noop(spark: Any, uri: str, experiment: str) -> None:
    """Ours."""
    spark.read.format("mlflow-experiment").option("tracking_uri", uri).load(experiment).write.format("noop").mode("overwrite").save()


def leaderboard(spark: Any, uri: str) -> None:
    """The ten best by a metric, found where the data are."""
    frame = spark.read.format("mlflow-experiment").option("tracking_uri", uri).option("filter", "metrics.m1 > 0.999").load("1")
    assert len(frame.orderBy(frame.metrics["m1"].desc()).limit(10).collect()) == 10


def bare_requests(url: str, experiment: str) -> None:
    """The server's own limit: its pages, unread."""
    import requests

    token = None
    while True:
        body = {"experiment_ids": [experiment], "max_results": 2_000, "page_token": token, "order_by": ["attributes.start_time ASC"]}
        token = requests.post(f"{url}/api/2.0/mlflow/runs/search", json=body, timeout=600).json().get("next_page_token")
        if not token:
            return


def seconds(action: Any) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


# -- data -------------------------------------------------------------------------------------------------------


def runs(sizes: dict[str, int]) -> Iterator[tuple[str, str, int, dict[str, float], dict[str, str], dict[str, str]]]:
    """Experiment, id, start, metrics, params, tags."""
    random.seed(0)
    for experiment, count in sizes.items():
        for i in range(count):
            metrics = {f"m{k}": random.random() for k in range(10)}
            yield (
                experiment, f"{random.getrandbits(128):032x}", T0 + i * 1000, metrics,
                {f"p{k}": str(random.random()) for k in range(10)}, {f"t{k}": f"v{i % 7}" for k in range(7)},
            )  # fmt: skip


def make_database(uri: str, sizes: dict[str, int]) -> None:
    """MLflow's tables, made by MLflow and filled directly."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    for name in sizes:
        client.create_experiment(name)
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as db:
        for experiment, id, start, metrics, params, tags in runs(sizes):
            db.execute(
                "INSERT INTO runs (run_uuid, name, source_type, user_id, status,"
            " start_time, end_time, lifecycle_stage, artifact_uri, experiment_id) "
                "VALUES (?, 'run', 'LOCAL', 'me', 'FINISHED', ?, ?, 'active', ?, ?)", (id, start, start + 500, f"/a/{id}", int(experiment)),
            )  # fmt: skip
            db.executemany("INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)", [(k, v, id) for k, v in params.items()])
            db.executemany("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", [(k, v, id) for k, v in tags.items()])
            points = [(k, v, start, id) for k, v in metrics.items()]
            for table in ("metrics", "latest_metrics"):
                db.executemany(f"INSERT INTO {table} (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, 0, 0, ?)", points)


def make_lake(uri: str, sizes: dict[str, int]) -> None:
    """The same in a lake, many runs a call."""
    from mlflow.tracking import MlflowClient

    from spark_tracking.lake import Event, Lake, MetricBlock

    client = MlflowClient(uri)
    for name in sizes:
        client.create_experiment(name)
    lake = Lake.open(uri)
    events: list[Event] = []
    blocks: list[MetricBlock] = []
    for number, (experiment, id, start, metrics, params, tags) in enumerate(runs(sizes), 1):
        values = {
            "created": str(start),
            "experiment_id": experiment,
            "status": "FINISHED",
            "start_time": str(start),
            "end_time": str(start + 500),
        }
        values |= {"run_name": "run", "artifact_uri": f"/a/{id}", "lifecycle_stage": "active", "created_by": "me"}
        events += [Event("run", id, "attr", k, v) for k, v in values.items()]
        events += [Event("run", id, "param", k, v) for k, v in params.items()] + [Event("run", id, "tag", k, v) for k, v in tags.items()]
        blocks.append(MetricBlock(id, experiment, list(metrics), list(metrics.values()), [start] * 10, [0] * 10))
        if number % 500 == 0:
            lake.write(events, blocks)
            events, blocks = [], []
    lake.write(events, blocks)
    lake.settle()


@contextmanager
def server(backend: str, log: Path) -> Iterator[str]:
    """`mlflow server` with one worker."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with log.open("w") as output:
        process = subprocess.Popen([*command, "--backend-store-uri", backend], stdout=output, stderr=output, start_new_session=True)
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                    break
                except OSError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
            process.wait(30)


if __name__ == "__main__":
    main()
