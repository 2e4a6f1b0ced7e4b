"""`score_udf` against `mlflow.pyfunc.spark_udf`, each in the same select over the same rows.

    python benchmarks/bench_score_udf.py [--rows N] [--only cheap,tasks,big]

A cheap model, 64 tasks, and a model of 100 MB, of which each load is noted. Each side has a session of its own, and they alternate.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from _harness import SOCKETS, Row, apart, scratch, show
from mlflow.models import infer_signature
from pyspark.sql import DataFrame
from pyspark.sql import functions as f
from sklearn.linear_model import LinearRegression

from spark_tracking.scoring import score_udf
from spark_tracking.spark.local import local_spark

NAMES = [f"x{i}" for i in range(20)]
ROUNDS = 5
TASKS = 64
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


class Side:
    """Peer or us, in a session of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self.spark = local_spark(name, memory="3g", settings=SOCKETS)
        self._make = {"spark_udf": mlflow.pyfunc.spark_udf, "score_udf": score_udf}[name]
        self._rows = self.spark.read.parquet(str(folder / "rows"))
        self._small = self._rows.limit(TASKS * 1000).repartition(TASKS).cache()

    @functools.cache  # noqa: B019  # as long as the benchmark
    def udf(self, model: str) -> Any:
        return self._make(self.spark, model)

    def pass_over(self, model: str, small: bool) -> float:
        return seconds(self._small if small else self._rows, self.udf(model))


@functools.cache
def peer(folder: Path) -> Side:
    """The peer, in its process."""
    return Side("spark_udf", folder)


def peer_pass(folder: Path, model: str, small: bool) -> float:
    """One of its passes."""
    return peer(folder).pass_over(model, small)


def make(folder: Path, rows: int) -> None:
    """Rows in four files, and the models."""
    spark = local_spark("score_udf", memory="3g", settings=SOCKETS)
    made = spark.range(0, rows, 1, 4).select("id", *[f.rand(i).alias(name) for i, name in enumerate(NAMES)])
    made.write.parquet(str(folder / "rows"))
    model = LinearRegression().fit(FEATURES, FEATURES["x0"])
    mlflow.sklearn.save_model(model, folder / "cheap", signature=SIGNATURE, serialization_format="cloudpickle", pip_requirements=[])
    big = Noting(str(folder / "notes"), 100 << 20)
    mlflow.pyfunc.save_model(folder / "big", python_model=big, signature=SIGNATURE, pip_requirements=[])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", type=lambda text: text.split(","), default=["cheap", "tasks", "big"], help="sections, comma-separated")
    given = parser.parse_args()
    works = {
        "cheap": (f"{given.rows:,} rows, cheap model", "cheap", False, ">= 1.3x"),
        "tasks": (f"{TASKS} tasks, cheap model", "cheap", True, ">= 3x"),
        "big": (f"{TASKS} tasks, 100 MB model", "big", True, ">= 3x"),
    }
    results = []
    with scratch() as folder, apart() as elsewhere:
        make(folder, given.rows)
        mine = Side("score_udf", folder)
        for title, name, small, reach in (works[section] for section in given.only):
            model, notes = str(folder / name), folder / "notes"
            sides = {"spark_udf": functools.partial(elsewhere, peer_pass, folder), "score_udf": mine.pass_over}
            taken: dict[str, list[float]] = {side: [] for side in sides}
            loads: dict[str, Counter[str]] = {side: Counter() for side in sides}
            for _ in range(1 + ROUNDS):
                for side, action in sides.items():
                    notes.write_text("")
                    taken[side].append(action(model, small))
                    loads[side].update(notes.read_text().split())
            for side, times in taken.items():
                noted = f"; {sum(loads[side].values())} loads in {len(loads[side])} processes" if name == "big" else ""
                print(f"{title}, {side}: cold {times[0]:.1f} s, warm {statistics.median(times[1:]):.2f} s{noted}", flush=True)
            results.append(Row(title, *(statistics.median(times[1:]) for times in taken.values()), "s", reach))
        show("score_udf against spark_udf", results)
        mine.spark.stop()


if __name__ == "__main__":
    main()
