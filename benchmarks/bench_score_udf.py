"""`score_udf` against `mlflow.pyfunc.spark_udf`, each in the same select over the same rows.

    python benchmarks/bench_score_udf.py [--rows N] [--only cheap,tasks,big]

A cheap model, 64 tasks, and a model of 100 MB; loads are counted by process with a model that notes each of its loads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from _harness import Row, scratch, show
from mlflow.models import infer_signature
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from sklearn.linear_model import LinearRegression

from spark_tracking.jobs.session import local_spark
from spark_tracking.scoring import score_udf

NAMES = [f"x{i}" for i in range(20)]
ROUNDS = 5
FEATURES = pd.DataFrame(np.random.default_rng(1).random((2000, 20)), columns=NAMES)
SIGNATURE = infer_signature(FEATURES, pd.DataFrame({"y": [0.5]}))


class Noting(mlflow.pyfunc.PythonModel):
    """Sums rows; holds some MB, and notes the process of each load in a file."""

    def __init__(self, notes: str, size: int) -> None:
        self.notes, self.weights = notes, np.random.default_rng(1).random(size // 8)

    def load_context(self, context: Any) -> None:
        with open(self.notes, "a") as file:
            file.write(f"{os.getpid()}\n")

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        return model_input.sum(axis=1) * self.weights[0]


def seconds(df: DataFrame, predict: Any) -> float:
    """One pass over all rows, nothing written."""
    begin = time.perf_counter()
    df.select(predict(*NAMES)).write.format("noop").mode("overwrite").save()
    return time.perf_counter() - begin


def compare(spark: SparkSession, df: DataFrame, model: str, title: str, reach: str) -> Row:
    """Medians of both, alternating, after one warm round."""
    theirs, mine = mlflow.pyfunc.spark_udf(spark, model), score_udf(spark, model)
    taken = [(seconds(df, theirs), seconds(df, mine)) for _ in range(1 + ROUNDS)]
    peer, ours = (statistics.median(times[1:]) for times in zip(*taken, strict=True))
    print(f"{title}: cold {taken[0][0]:.1f} s (peer), {taken[0][1]:.1f} s (ours); warm {peer:.2f}, {ours:.2f} s", flush=True)
    return Row(title, peer, ours, "s", reach)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", type=lambda text: text.split(","), default=["cheap", "tasks", "big"], help="sections, comma-separated")
    given = parser.parse_args()
    spark = local_spark("bench", memory="3g")
    results = []
    with scratch() as folder:
        made = spark.range(0, given.rows, 1, 4).select("id", *[f.rand(i).alias(name) for i, name in enumerate(NAMES)])
        made.write.parquet(str(folder / "rows"))
        rows = spark.read.parquet(str(folder / "rows"))
        small = rows.limit(64_000).repartition(64).cache()
        small.count()
        cheap = str(folder / "cheap")
        model = LinearRegression().fit(FEATURES, FEATURES["x0"])
        mlflow.sklearn.save_model(model, cheap, signature=SIGNATURE, serialization_format="cloudpickle", pip_requirements=[])
        if "cheap" in given.only:
            results.append(compare(spark, rows, cheap, f"{given.rows:,} rows, cheap model", ">= 1.3x"))
        if "tasks" in given.only:
            results.append(compare(spark, small, cheap, "64 tasks, cheap model", ">= 3x"))
        if "big" in given.only:
            notes, big = Path(folder / "notes"), str(folder / "big")
            mlflow.pyfunc.save_model(big, python_model=Noting(str(notes), 100 << 20), signature=SIGNATURE, pip_requirements=[])
            results.append(compare(spark, small, big, "64 tasks, 100 MB model", ">= 3x"))
            for name, predict in (("spark_udf", mlflow.pyfunc.spark_udf(spark, big)), ("score_udf", score_udf(spark, big))):
                notes.write_text("")
                for _ in range(3):
                    seconds(small, predict)
                loads = Counter(notes.read_text().split())
                print(f"{name}: {sum(loads.values())} loads in {len(loads)} processes, over 3 passes of 64 tasks")
        show("score_udf against spark_udf", results)
    spark.stop()


if __name__ == "__main__":
    main()
