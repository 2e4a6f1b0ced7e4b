"""`score_table` against `mlflow.pyfunc.spark_udf` and a write: Delta to Delta, same table, same model, same session.

    python benchmarks/bench_score_table.py [rows]

`limit` is what the cores can do: for the cheap model read + predict + write with pyarrow alone, one process per core; for the
expensive one predict alone on batches in memory. Peer and ours alternate; the first round of each is cold and printed apart.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from _harness import Row, scratch, show
from mlflow.models import infer_signature
from pyspark.sql import SparkSession
from pyspark.sql import functions as f
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from spark_tracking.jobs.session import local_spark
from spark_tracking.scoring import score_table

CORES = 2
ROUNDS = 3
NAMES = [f"x{i}" for i in range(20)]


def save(folder: Path, estimator: object) -> str:
    """The estimator, fitted on random rows, as a model folder."""
    rng = np.random.default_rng(1)
    features = pd.DataFrame(rng.random((4000, 20)), columns=NAMES)
    labels = (features["x0"] + features["x1"] > 1).astype("int64")
    estimator.fit(features, labels)  # type: ignore[attr-defined]
    outputs = pd.DataFrame({"prediction": estimator.predict(features)})  # type: ignore[attr-defined]
    mlflow.sklearn.save_model(estimator, str(folder), signature=infer_signature(features, outputs), serialization_format="cloudpickle")
    return str(folder)


def table(spark: SparkSession, folder: Path, rows: int, columns: int, files: int, parts: int = 0) -> str:
    """A Delta table of `id` and random doubles."""
    df = spark.range(0, rows, 1, files).select("id", *[f.rand(i).alias(f"x{i}") for i in range(columns)])
    df = df.withColumn("part", f.col("id") % parts) if parts else df
    (df.write.partitionBy("part") if parts else df.write).format("delta").save(str(folder))
    return str(folder)


def peer(spark: SparkSession, model: str, source: str, target: str) -> None:
    """What one writes without us."""
    predict = mlflow.pyfunc.spark_udf(spark, model)
    rows = spark.read.format("delta").load(source)
    rows.select("id", predict(*NAMES).alias("prediction")).write.format("delta").mode("overwrite").save(target)


def by_hand(work: tuple[str, str, str]) -> None:
    """One file read, predicted and written without Spark."""
    model, source, target = work
    loaded = mlflow.pyfunc.load_model(model)
    with pq.ParquetFile(source) as file:
        for number, batch in enumerate(file.iter_batches(128 * 1024, columns=["id", *NAMES], use_threads=False)):
            frame = batch.to_pandas()
            frame["prediction"] = loaded.predict(frame[NAMES])
            frame[["id", "prediction"]].to_parquet(f"{target}-{number}.parquet")


def predict_only(work: tuple[str, int]) -> None:
    """Predictions for rows in memory."""
    model, rows = work
    loaded = mlflow.pyfunc.load_model(model)
    frame = pd.DataFrame(np.random.default_rng(2).random((min(rows, 100_000), 20)), columns=NAMES)
    for _ in range(max(1, rows // len(frame))):
        loaded.predict(frame)


def alternate(first: Callable[[], object], second: Callable[[], object], title: str) -> tuple[float, float]:
    """Warm medians of both; the cold first times are printed."""
    taken: list[list[float]] = [[], []]
    for _ in range(1 + ROUNDS):
        for action, times in zip((first, second), taken, strict=True):
            begin = time.perf_counter()
            action()
            times.append(time.perf_counter() - begin)
    print(f"{title}: cold {taken[0][0]:.1f} s (peer), {taken[1][0]:.1f} s (ours)", flush=True)
    return statistics.median(taken[0][1:]), statistics.median(taken[1][1:])


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
    spark = local_spark("bench", cores=CORES, memory="3g")
    results: list[Row] = []
    with scratch() as folder, multiprocessing.get_context("spawn").Pool(CORES) as pool:
        pool.map(predict_only, [(save(folder / "warm", LogisticRegression()), 1)] * CORES)
        cheap, costly = save(folder / "cheap", LogisticRegression()), save(folder / "costly", GradientBoostingClassifier(n_estimators=50))
        source = table(spark, folder / "source", rows, 20, 2 * CORES)

        def ours(model: str, given: str = source, name: str = "ours") -> Callable[[], object]:
            return lambda: score_table(spark, model, given, str(folder / name), keep=["id"], mode="overwrite")

        for title, model, reach in (
            (f"{rows:,} x 20, logistic", cheap, ">= 8x; >= 0.5 of limit"),
            (f"{rows:,} x 20, 50 trees", costly, ">= 0.9 of limit"),
        ):
            begin = time.perf_counter()
            if model == cheap:
                files = sorted(Path(source).glob("*.parquet"))
                pool.map(by_hand, [(model, str(file), str(folder / f"hand{i}")) for i, file in enumerate(files)], chunksize=1)
            else:
                pool.map(predict_only, [(model, rows // CORES)] * CORES, chunksize=1)
            limit = time.perf_counter() - begin
            theirs, mine = alternate(lambda model=model: peer(spark, model, source, str(folder / "peer")), ours(model), title)
            results.append(Row(title, theirs, mine, "s", f"{reach}: {limit / mine:.2f}", limit=limit))

        base = statistics.median([_seconds(ours(cheap)) for _ in range(ROUNDS)]) / rows
        for title, shape in (("1,000 small files", {"files": 1000}), ("200 partitions", {"files": 1, "parts": 200})):
            given = table(spark, folder / title.replace(" ", ""), rows, 20, **shape)
            theirs, mine = alternate(
                lambda given=given: peer(spark, cheap, given, str(folder / "peer")), ours(cheap, given, "shape"), title
            )
            results.append(Row(title, theirs, mine, "s", f"<= 2x per row: {mine / rows / base:.2f}"))
        wide = table(spark, folder / "wide", rows // 10, 300, CORES)
        theirs, mine = alternate(lambda: peer(spark, cheap, wide, str(folder / "peer")), ours(cheap, wide, "wide"), "wide")
        results.append(Row(f"{rows // 10:,} x 300, 20 used", theirs, mine, "s", "reads those 20"))

        def again() -> object:
            return score_table(spark, cheap, source, str(folder / "since"), keep=["id"], since="last")

        again()
        nothing = statistics.median([_seconds(again) for _ in range(ROUNDS)])
        results.append(Row("an incremental run with nothing new", nothing, nothing, "s", "< 3 s"))
        show("score_table against spark_udf and a write", results)
    spark.stop()


def _seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
