"""Logging from Spark tasks: points a second from two workers, `executor_run` against `mlflow.log_metric`, to the same `mlflow server`.

Then the same with tasks that fail at their first attempt: each point has to be on the server once. Last, the init script's time.

    python benchmarks/bench_executor_logging.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
from _harness import Row, median, scratch, show

import spark_tracking
from spark_tracking.spark.local import local_spark
from tests.servers import mlflow_server

NAIVE_POINTS, OUR_POINTS = 100, 5_000  # per task: each takes seconds
SCRIPT = Path(__file__).parents[1] / "init_scripts" / "spark-tracking-init.sh"


def rate(spark: Any, work: Any) -> float:
    """Points a second of two tasks at a time: all points by the time of the slowest task, warm workers."""
    spark.range(0, 2, 1, 2).mapInPandas(lambda batches: batches, "id long").count()
    rows = spark.range(0, 2, 1, 2).mapInPandas(work, "points long, seconds double").collect()
    return float(sum(row.points for row in rows) / max(row.seconds for row in rows))


def naive(uri: str, run_id: str) -> Any:
    def work(batches: Any) -> Any:

        import mlflow
        import pandas as pd

        mlflow.set_tracking_uri(uri)
        for batch in batches:
            begin = time.perf_counter()
            for step in range(NAIVE_POINTS):
                mlflow.log_metric(f"loss{batch['id'].iloc[0]}", 1.0 / (step + 1), step=step, run_id=run_id)
            yield pd.DataFrame({"points": [NAIVE_POINTS], "seconds": [time.perf_counter() - begin]})

    return work


def ours(tracking: Any, fail_first: bool = False) -> Any:
    def work(batches: Any) -> Any:

        import pandas as pd
        from pyspark import TaskContext

        for batch in batches:
            begin = time.perf_counter()
            with spark_tracking.executor_run(tracking, key=int(batch["id"].iloc[0])) as run:
                for step in range(OUR_POINTS):
                    run.log_metric("loss", 1.0 / (step + 1), step)
                if fail_first and TaskContext.get().attemptNumber() == 0:
                    raise OSError("first attempt")
            yield pd.DataFrame({"points": [OUR_POINTS], "seconds": [time.perf_counter() - begin]})

    return work


def missing_or_double(tracking: Any) -> int:
    """Points that are not on the server exactly once."""
    client = mlflow.MlflowClient()
    children = client.search_runs([tracking.experiment_id], f"tags.mlflow.parentRunId = '{tracking.run_id}'")
    wrong = abs(len(children) - 2) * OUR_POINTS
    for child in children:
        steps = [point.step for point in client.get_metric_history(child.info.run_id, "loss")]
        wrong += len(set(range(OUR_POINTS)) ^ set(steps)) + len(steps) - len(set(steps))
    return wrong


def start_seconds(folder: Path) -> tuple[float, float]:
    """The init script where there is nothing to install: the first start and the median of ten more."""
    environ = {**os.environ, "SPARK_TRACKING_INIT_ROOT": str(folder), "SPARK_CONF_DIR": "/conf", "SPARK_TRACKING_PYTHON": sys.executable}
    environ["SPARK_TRACKING_URI"] = "http://mlflow.example.com"

    def start() -> None:
        subprocess.run([SCRIPT], env=environ, capture_output=True, check=True)

    return median(start, 1), median(start, 10)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with scratch() as folder, mlflow_server(f"sqlite:///{folder}/mlflow.db", folder, workers=2) as (uri, _):
        mlflow.set_tracking_uri(uri)
        spark = local_spark("bench", settings={"spark.master": "local[2,4]"})
        with mlflow.start_run() as run:
            peer = rate(spark, naive(uri, run.info.run_id))
            own = rate(spark, ours(spark_tracking.executor_tracking()))
        with mlflow.start_run():
            tracking = spark_tracking.executor_tracking()
            rate(spark, ours(tracking, fail_first=True))
            wrong = missing_or_double(tracking)
        spark.stop()
        first, again = start_seconds(folder / "root")
    rows = [
        Row("points logged from 2 workers, to a server on SQLite", peer, own, "points/s", ">= 20x", higher_is_better=True),
        Row("init script, nothing to install: first start (peer column: limit)", 2.0, first, "s", "< 2 s"),
        Row("init script, nothing to install: median of 10 more", 2.0, again, "s", "< 2 s"),
    ]
    show("executor logging: naive mlflow.log_metric against executor_run", rows)
    print(f"points not on the server exactly once, where each task failed once: {wrong} of {2 * OUR_POINTS}")
    assert not wrong


if __name__ == "__main__":
    main()
