"""The metric histories of many runs into Spark: from a lake and a database, against `get_metric_history` in a thread pool.

    python benchmarks/bench_read_history.py [--runs 1000] [--points 10000] [--peer-runs 20] [--folder DIR]

The peer reads only `--peer-runs` of the runs, in 8 threads, and rates are compared: it takes the same time for each run. `--folder` keeps
the data, which take minutes to make, for the next time.
"""

from __future__ import annotations

import argparse
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _harness import Row, median, scratch, show
from bench_read_runs import T0, make_database, peak_memory, seconds, spark_of


def main() -> None:
    """Make the data, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--peer-runs", type=int, default=20)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with scratch() as temporary:
        folder = (asked.folder or temporary).absolute() / f"history-{asked.runs}-{asked.points}"
        database, lake = f"sqlite:///{folder / 'mlflow.db'}", f"delta://{folder / 'lake'}"
        if not (folder / "made").exists():
            folder.mkdir(parents=True)
            make_histories(database, lake, asked.runs, asked.points)
            (folder / "made").touch()
        spark = spark_of()
        rows = measure(spark, database, lake, asked.runs, asked.points, asked.peer_runs)
        memory = peak_memory(spark)
        spark.stop()
    show(f"Histories into Spark: {asked.runs:,} runs x {asked.points:,} points (peer: rate of {asked.peer_runs} of them)", rows)
    print(f"\npeak memory: driver's JVM {memory[0]:,.0f} MB (heap of at most 2 GB), largest Python worker {memory[1]:,.0f} MB")


def measure(spark: Any, database: str, lake: str, runs: int, points: int, peer_runs: int) -> list[Row]:
    """One row a promise."""
    with sqlite3.connect(database.removeprefix("sqlite:///")) as db:
        ids = [id for (id,) in db.execute("SELECT run_uuid FROM runs LIMIT ?", (peer_runs,))]
    peer = peer_runs * points / seconds(lambda: peer_read(spark, database, ids))
    rows = []
    for name, uri, reach in (("lake", lake, ">= 100x"), ("database", database, ">= 20x")):
        noop(spark, uri, "run_name = 'none'")  # workers have started and imported
        rate = runs * points / median(lambda uri=uri: noop(spark, uri, None), 3)
        rows.append(Row(f"points from the {name}, noop write", peer, rate, "points/s", reach, True))
    return rows


def peer_read(spark: Any, uri: str, ids: list[str]) -> None:
    """What one writes today."""
    import pandas as pd
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    with ThreadPoolExecutor(8) as pool:
        histories = list(pool.map(lambda id: client.get_metric_history(id, "loss"), ids))
    rows = [(id, m.key, m.timestamp, m.step, m.value) for id, history in zip(ids, histories) for m in history]
    frame = pd.DataFrame(rows, columns=["run_id", "metric_name", "metric_time", "metric_step", "metric_value"])
    spark.createDataFrame(frame).write.format("noop").mode("overwrite").save()


def noop(spark: Any, uri: str, filter: str | None) -> None:
    """Ours."""
    read = spark.read.format("mlflow").option("tracking_uri", uri)
    read = read.option("filter", filter) if filter else read
    read.load("run_metrics_history").write.format("noop").mode("overwrite").save()


def make_histories(database: str, lake_uri: str, runs: int, points: int) -> None:
    """The same points in both."""
    from spark_tracking.lake import Event, Lake, MetricBlock

    make_database(database, {"1": runs})
    lake = Lake.open(lake_uri, create=True)
    values = [1 / (1 + step) for step in range(points)]
    with sqlite3.connect(database.removeprefix("sqlite:///")) as db:
        db.execute("DELETE FROM metrics")
        ids = sorted(id for (id,) in db.execute("SELECT run_uuid FROM runs"))
        for id in ids:
            rows = (("loss", value, T0 + step, step, id) for step, value in enumerate(values))
            db.executemany("INSERT INTO metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, 0, ?)", rows)
            attributes = {
                "created": str(T0),
                "experiment_id": "0",
                "status": "FINISHED",
                "start_time": str(T0),
                "lifecycle_stage": "active",
            }
            block = MetricBlock(id, "0", ["loss"] * points, values, list(range(T0, T0 + points)), list(range(points)))
            lake.write([Event("run", id, "attr", key, value) for key, value in attributes.items()], [block])
    lake.settle()


if __name__ == "__main__":
    main()
