"""Runs into Spark: from a lake, an MLflow database and a server, against `mlflow.search_runs` + `createDataFrame`.

    python benchmarks/bench_read_runs.py [--runs 100000] [--peer-runs 5000] [--rest-runs 20000] [--workers 4] [--folder D] [--only PART]

Every run has 27 keys (10 metrics, 10 params, 7 tags). The peer is slow, so it reads fewer runs of an experiment of its own; rates
are compared, which favours it, since its pages grow slower with the offset. The server is one `mlflow server` over the database;
its own limit is what as many bare clients as it has workers get out of it, its answers thrown away. `--folder` keeps the data, which take
minutes to make, for the next time. `--only`: lake, database, growth, leaderboard, rest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _harness import SOCKETS, Row, median, scratch, show

from tests.servers import mlflow_server

T0 = 1_700_000_000_000
PARTS = ("lake", "database", "growth", "leaderboard", "rest")


def main() -> None:
    """Make the data, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--peer-runs", type=int, default=5_000)
    parser.add_argument("--rest-runs", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--board", help=argparse.SUPPRESS)  # the leaderboard behind Spark Connect: a process of its own
    asked = parser.parse_args()
    if asked.board:
        print(json.dumps(best_of_board(spark_of(connect=True), asked.board)))
        return
    sizes = {"1": asked.runs, "2": asked.peer_runs, "3": asked.rest_runs, "4": 1_000}
    with scratch() as temporary:
        folder = asked.folder or temporary
        database, lake = data(folder, sizes)
        spark = spark_of()
        rows = measure(spark, database, lake, sizes, asked.workers, asked.only, temporary)
        memory = peak_memory(spark)
        spark.stop()
    show(f"Runs into Spark: {asked.runs:,} runs of 27 keys", rows)
    print(f"\npeak memory: driver's JVM {memory[0]:,.0f} MB (heap of at most 2 GB), largest Python worker {memory[1]:,.0f} MB")


def data(folder: Path, sizes: dict[str, int]) -> tuple[str, str]:
    """URIs of a database and a lake with experiments of these sizes; made where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    database, lake = f"sqlite:///{folder.absolute() / 'mlflow.db'}", f"delta://{folder.absolute() / 'lake'}"
    made = folder / "made.json"
    if not made.exists() or json.loads(made.read_text()) != sizes:
        make_database(database, sizes)
        make_lake(lake, sizes)
        made.write_text(json.dumps(sizes))
    return database, lake


def spark_of(connect: bool = False) -> Any:
    """A local Spark on all cores."""
    from spark_tracking.spark.local import local_spark

    return local_spark("bench", cores=os.cpu_count() or 2, memory="2g", connect=connect, settings=SOCKETS)


def measure(spark: Any, database: str, lake: str, sizes: dict[str, int], workers: int, only: Any, folder: Path) -> list[Row]:
    """One row a promise."""
    rows = []
    peer = sizes["2"] / seconds(lambda: peer_read(spark, database, "2")) if {"lake", "database"} & set(only) else 0.0
    for name, uri in (("lake", lake), ("database", database)):
        noop(spark, uri, "4")  # workers have started and imported
        rate = sizes["1"] / median(lambda uri=uri: noop(spark, uri, "1"), 3)
        if name in only:
            rows.append(Row(f"runs from the {name}, noop write", peer, rate, "runs/s", ">= 50x", True))
        if "growth" in only:
            small = sizes["4"] / min(seconds(lambda uri=uri: noop(spark, uri, "4")) for _ in range(3))
            rows.append(Row(f"growth: {name}, {sizes['4']:,} runs -> {sizes['1']:,}", small, rate, "runs/s", ">= 1x", True))
    if "leaderboard" in only:
        asked = [sys.executable, __file__, "--board", lake]
        connect = subprocess.run(asked, check=True, capture_output=True, text=True, env={**os.environ, "SPARK_TESTING": "1"}).stdout
        for name, board in (("classic", best_of_board(spark, lake)), ("Connect", json.loads(connect.splitlines()[-1]))):
            rows.append(Row(f"leaderboard, top 10, {name} (peer: the promise)", 1.0, board, "s", "< 1 s", limit=1.0))
    if "rest" in only:
        with mlflow_server(database, folder, workers) as (url, _):
            over_http = sizes["2"] / seconds(lambda: peer_read(spark, url, "2"))
            bare = sizes["2"] / seconds(lambda: bare_requests(url, "2", sizes["2"], workers))
            ours = sizes["3"] / seconds(lambda: noop(spark, url, "3"))
            again = sizes["3"] / seconds(lambda: bare_requests(url, "3", sizes["3"], workers))
        rows.append(Row(f"runs over REST, {workers} server workers", over_http, ours, "runs/s", ">= 5x", True, max(bare, again)))
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


def best_of_board(spark: Any, uri: str) -> float:
    """Seconds of the leaderboard, warm."""
    return min(seconds(lambda: leaderboard(spark, uri)) for _ in range(5))


def leaderboard(spark: Any, uri: str) -> None:
    """The ten best by a metric, found where the data are."""
    frame = spark.read.format("mlflow-experiment").option("tracking_uri", uri).option("filter", "metrics.m1 > 0.99").load("1")
    assert len(frame.orderBy(frame.metrics["m1"].desc()).limit(10).collect()) == 10


def bare_requests(url: str, experiment: str, runs: int, clients: int) -> None:
    """The server's own limit: its pages, unread; each client has a range of start times."""
    import requests

    def read(client: int) -> None:
        low, high = (T0 + runs * 1000 * end // clients for end in (client, client + 1))
        filter, token = f"attributes.start_time >= {low} AND attributes.start_time < {high}", None
        while True:
            body = {"experiment_ids": [experiment], "max_results": 2_000, "page_token": token, "filter": filter}
            answer = requests.post(f"{url}/api/2.0/mlflow/runs/search", json={k: v for k, v in body.items() if v}, timeout=600)
            token = answer.json().get("next_page_token")
            if not token:
                return

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(read, range(clients)))


def seconds(action: Any) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def peak_memory(spark: Any) -> tuple[float, float]:
    """Peak resident MB of the driver's JVM, and of the largest Python worker that it still has."""
    jvm = spark._jvm.java.lang.ProcessHandle.current()
    workers = [handle.pid() for handle in jvm.descendants().toArray()]
    return _peak(jvm.pid()), max(map(_peak, workers), default=0.0)


def _peak(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


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


if __name__ == "__main__":
    main()
