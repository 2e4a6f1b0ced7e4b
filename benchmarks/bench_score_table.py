"""`score_table` against `mlflow.pyfunc.spark_udf` and a write: Delta to Delta, same table, same model, each in a session of its own.

    python benchmarks/bench_score_table.py [--rows N] [--only cheap,trees,files,partitions,big,wide,nothing]

`limit` is what the cores can do in the same run: read + predict + write with pyarrow alone, one process per core; what predict alone
takes on batches in memory is printed beside it. Peer and ours alternate; the first round of each is cold and printed apart.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from _big import Big
from _harness import SOCKETS, Row, apart, median, scratch, show
from mlflow.models import infer_signature
from pyspark.sql import SparkSession
from pyspark.sql import functions as f
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from spark_tracking.scoring import score_table
from spark_tracking.spark.local import local_spark

CORES = 2
ROUNDS = 3
NAMES = [f"x{i}" for i in range(20)]
SECTIONS = ["cheap", "trees", "files", "partitions", "big", "wide", "nothing"]


def save(folder: Path, estimator: Any) -> str:
    """The estimator, fitted on random rows, as a model folder."""
    rng = np.random.default_rng(1)
    features = pd.DataFrame(rng.random((4000, 20)), columns=NAMES)
    labels = (features["x0"] + features["x1"] > 1).astype("int64")
    estimator.fit(features, labels)
    outputs = pd.DataFrame({"prediction": estimator.predict(features)})
    mlflow.sklearn.save_model(
        estimator, str(folder), signature=infer_signature(features, outputs), serialization_format="cloudpickle", pip_requirements=[]
    )
    return str(folder)


def table(spark: SparkSession, folder: Path, rows: int, columns: int, files: int, parts: int = 0) -> str:
    """A Delta table of `id` and random doubles."""
    df = spark.range(0, rows, 1, files).select("id", *[f.rand(i).alias(f"x{i}") for i in range(columns)])
    df = df.withColumn("part", f.col("id") % parts) if parts else df
    (df.write.partitionBy("part") if parts else df.write).format("delta").save(str(folder))
    return str(folder)


def peer(slots: int, model: str, source: str, target: str) -> None:
    """What one writes without us; in a process and session of its own."""
    spark = local_spark("peer", cores=slots, memory="3g", settings=SOCKETS)
    predict = mlflow.pyfunc.spark_udf(spark, model)
    rows = spark.read.format("delta").load(source)
    rows.select("id", predict(*NAMES).alias("prediction")).write.format("delta").mode("overwrite").save(target)


kept = functools.cache(mlflow.pyfunc.load_model)


def by_hand(work: tuple[str, str, str]) -> None:
    """One file read, predicted and written without Spark."""
    model, source, target = work
    loaded = kept(model)
    with pq.ParquetFile(source) as file:
        for number, batch in enumerate(file.iter_batches(128 * 1024, columns=["id", *NAMES], use_threads=False)):
            frame = batch.to_pandas()
            frame["prediction"] = loaded.predict(frame[NAMES])
            frame[["id", "prediction"]].to_parquet(f"{target}-{number}.parquet")


def predict_only(work: tuple[str, int]) -> None:
    """Predictions for rows in memory."""
    model, rows = work
    loaded = kept(model)
    frame = pd.DataFrame(np.random.default_rng(2).random((min(rows, 100_000), 20)), columns=NAMES)
    for _ in range(max(1, rows // len(frame))):
        loaded.predict(frame)


def memory() -> tuple[float, float]:
    """GB that this session's Python workers hold, shared pages counted once (PSS); and as `top` shows it, counted for each (RSS)."""
    jvm = SparkSession.active().sparkContext._gateway.proc.pid  # type: ignore[union-attr]
    total, family = {"Pss:": 0, "Rss:": 0}, {jvm}
    for process in sorted(int(path.name) for path in Path("/proc").glob("[0-9]*")):  # children have greater numbers
        try:
            parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
            if parent not in family:
                continue
            family.add(process)
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.split()[0] in total:
                    total[line.split()[0]] += int(line.split()[1])
        except (OSError, IndexError):
            continue
    return total["Pss:"] / 1e6, total["Rss:"] / 1e6


@dataclass
class Bench:
    """One run: its session, scratch folder, size and results."""

    spark: SparkSession
    elsewhere: Callable[..., Any]
    slots: int
    folder: Path
    rows: int
    results: list[Row]
    ballast: int = 125_000_000  # doubles

    def alternate(self, title: str, model: str, source: str, reach: str, limit: Callable[[], object] | None = None, rows: int = 0) -> Row:
        """Warm medians of peer, us and the limit, round by round; the cold first times are printed."""
        actions = [lambda: self.theirs(model, source, title), lambda: self.ours(model, source, title), *([limit] if limit else [])]
        taken: list[list[float]] = [[] for _ in actions]
        for _ in range(1 + ROUNDS):
            for action, times in zip(actions, taken, strict=True):
                begin = time.perf_counter()
                action()
                times.append(time.perf_counter() - begin)
        theirs, mine, *best = (statistics.median(times[1:]) for times in taken)
        print(
            f"{title}: {taken[0][0]:.1f} s (peer) and {taken[1][0]:.1f} s (ours) cold; warm {theirs:.2f}, {mine:.2f}, limit {best}",
            flush=True,
        )
        if best:
            reach += f": {best[0] / mine:.2f}"
        if rows:
            reach += f": {mine / rows / self.base:.2f}"
        self.results.append(Row(title, theirs, mine, "s", reach, limit=best[0] if best else None))
        return self.results[-1]

    def theirs(self, model: str, source: str, title: str) -> object:
        return self.elsewhere(peer, self.slots, model, source, str(self.folder / f"peer {title}"))

    def ours(self, model: str, source: str, title: str) -> object:
        return score_table(self.spark, model, source, str(self.folder / f"ours {title}"), keep=["id"], mode="overwrite")

    def _once(self, name: str, make: Callable[[Path], str]) -> str:
        folder = self.folder / name
        return str(folder) if folder.exists() else make(folder)

    @property
    def cheap_model(self) -> str:
        return self._once("cheap model", lambda folder: save(folder, LogisticRegression()))

    @property
    def source(self) -> str:
        return self._once("source", lambda folder: table(self.spark, folder, self.rows, 20, 2 * CORES))

    @property
    def base(self) -> float:
        """Seconds per row of the first work, measured in this run."""
        for row in self.results:
            if "logistic" in row.work:
                return row.ours / self.rows
        return self.alternate(f"{self.rows:,} x 20, logistic", self.cheap_model, self.source, "").ours / self.rows

    def cheap(self) -> None:
        self.against_limits(f"{self.rows:,} x 20, logistic", self.cheap_model, ">= 8x; >= 0.5 of limit")

    def trees(self) -> None:
        """With scikit-learn's trees of depth 3, and with such as boosted models have that cost something."""
        for depth in (3, 10):
            model = save(self.folder / f"trees {depth}", GradientBoostingClassifier(n_estimators=50, max_depth=depth))
            self.against_limits(f"{self.rows:,} x 20, 50 trees of depth {depth}", model, ">= 0.9 of predict alone")

    def against_limits(self, title: str, model: str, reach: str) -> None:
        """Beside the peer, reading + predicting + writing by hand, and predicting alone."""
        files = sorted(Path(self.source).glob("*.parquet"))
        works = [(model, str(file), str(self.folder / f"hand{i}")) for i, file in enumerate(files)]
        with multiprocessing.get_context("spawn").Pool(CORES) as pool:
            hand = functools.partial(pool.map, by_hand, works, chunksize=1)
            alone = functools.partial(pool.map, predict_only, [(model, self.rows // CORES)] * CORES, chunksize=1)
            row = self.alternate(title, model, self.source, reach, hand)
            alone()
            print(f"{title}: predict alone, on batches in memory: {median(alone, ROUNDS) / row.ours:.2f} of our time", flush=True)

    def files(self) -> None:
        given = table(self.spark, self.folder / "small", self.rows, 20, 1000)
        self.alternate("1,000 small files", self.cheap_model, given, "<= 2x per row", rows=self.rows)

    def partitions(self) -> None:
        given = table(self.spark, self.folder / "parts", self.rows, 20, 1, parts=200)
        self.alternate("200 partitions", self.cheap_model, given, "<= 2x per row", rows=self.rows)

    def big(self) -> None:
        """1 GB on 4 workers. The session has two slots more than cores for this; the peer loads it in every task."""
        estimator = Big()
        estimator.ballast, estimator.notes = np.random.default_rng(1).random(self.ballast), str(self.folder / "notes")
        model = save(self.folder / "big model", estimator)
        del estimator
        source = table(self.spark, self.folder / "big source", self.rows, 20, 4 * CORES)
        notes = Path(self.folder / "notes")
        for title, action, held in (("ours", self.ours, memory), ("peer", self.theirs, lambda: self.elsewhere(memory))):
            notes.write_text("")
            begin = time.perf_counter()
            action(model, source, "big")
            cold = time.perf_counter() - begin
            shared, summed = held()
            loads = Counter(notes.read_text().split())
            print(
                f"1 GB model, 4 workers, {title}: cold {cold:.1f} s, {sum(loads.values())} loads in {len(loads)} processes, "
                f"the workers hold {shared:.2f} GB ({summed:.2f} GB if shared pages are counted for each)",
                flush=True,
            )
        self.alternate("1 GB model, 4 workers", model, source, "<= 2x per row", rows=self.rows)

    def wide(self) -> None:
        given = table(self.spark, self.folder / "wide", self.rows // 10, 300, CORES)
        self.alternate(f"{self.rows // 10:,} x 300, 20 used", self.cheap_model, given, "reads those 20")

    def nothing(self) -> None:
        def again() -> object:
            return score_table(self.spark, self.cheap_model, self.source, str(self.folder / "since"), keep=["id"], since="last")

        again()
        seconds = median(again, 5)
        self.results.append(Row("an incremental run with nothing new", seconds, seconds, "s", "< 3 s"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--only", type=lambda text: text.split(","), default=SECTIONS, help="sections, comma-separated")
    return parser.parse_args()


def sessions(only: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Slots and sections: the model of 1 GB wants 4 workers, whatever the cores."""
    yield CORES, [name for name in SECTIONS if name in only and name != "big"]
    yield 4, [name for name in only if name == "big"]


def main() -> None:
    given = arguments()
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # workers import `_big`
    results: list[Row] = []
    for slots, sections in sessions(given.only):
        if not sections:
            continue
        spark = local_spark("bench", cores=slots, memory="3g", settings=SOCKETS)
        with scratch() as folder, apart() as elsewhere:
            bench = Bench(spark, elsewhere, slots, folder, given.rows, [])
            for section in sections:
                getattr(bench, section)()
            results += bench.results
        spark.stop()
    show("score_table against spark_udf and a write", results)


if __name__ == "__main__":
    main()
