"""`score_udf` against `mlflow.pyfunc.spark_udf`, each in the same select over the same cached rows.

    python benchmarks/bench_score_udf.py [rows]

A cheap model, 64 tasks, and a model of 100 MB; loads are counted by process with a model that notes each of its loads.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from _harness import Row, scratch, show
from mlflow.models import infer_signature
from pyspark.sql import DataFrame
from pyspark.sql import functions as f
from sklearn.linear_model import LinearRegression

from spark_tracking.jobs.session import local_spark
from spark_tracking.scoring import score_udf

NAMES = [f"x{i}" for i in range(20)]
ROUNDS = 5


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


def compare(spark: Any, df: DataFrame, model: str) -> tuple[float, float]:
    """Medians of both, alternating, after one warm round."""
    theirs, mine = mlflow.pyfunc.spark_udf(spark, model), score_udf(spark, model)
    taken = [(seconds(df, theirs), seconds(df, mine)) for _ in range(1 + ROUNDS)][1:]
    return statistics.median(pair[0] for pair in taken), statistics.median(pair[1] for pair in taken)


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    spark = local_spark("bench", memory="3g")
    results = []
    with scratch() as folder:
        df = spark.range(0, rows, 1, 4).select("id", *[f.rand(i).alias(f"x{i}") for i in range(20)])
        df.write.parquet(str(folder / "rows"))
        df = spark.read.parquet(str(folder / "rows"))
        small = df.limit(64_000).repartition(64).cache()
        small.count()
        features = pd.DataFrame(np.random.default_rng(1).random((2000, 20)), columns=NAMES)
        outputs = pd.DataFrame({"y": [0.5]})
        model = LinearRegression().fit(features, features["x0"])
        cheap = str(folder / "cheap")
        mlflow.sklearn.save_model(model, cheap, signature=infer_signature(features, outputs), serialization_format="cloudpickle")
        results.append(Row(f"{rows:,} rows, cheap model", *compare(spark, df, cheap), "s", ">= 1.3x"))
        results.append(Row("64 tasks, cheap model", *compare(spark, small, cheap), "s", ">= 3x"))
        notes = Path(folder / "notes")
        big = str(folder / "big")
        mlflow.pyfunc.save_model(big, python_model=Noting(str(notes), 100 << 20), signature=infer_signature(features, outputs))
        results.append(Row("64 tasks, 100 MB model", *compare(spark, small, big), "s", ">= 3x"))
        notes.write_text("")
        seconds(small, score_udf(spark, big))
        show("score_udf against spark_udf", results)
        loads = Counter(notes.read_text().split())
        print(f"loads in one more pass over 64 tasks, by process: {dict(loads) or 'none, all workers had it'}")
    spark.stop()


if __name__ == "__main__":
    main()
