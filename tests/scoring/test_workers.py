"""How often workers load a model, in each mode of Spark, and what they do when processes are killed.

Each mode needs a Spark of its own, so these run in processes of their own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from scoring_models import save_function
from sklearn.neighbors import KNeighborsRegressor

from spark_tracking.delta import files as delta_files
from spark_tracking.scoring.model import resolve
from spark_tracking.scoring.worker import model_cache


class Noting(mlflow.pyfunc.PythonModel):
    """Notes the process of each load, is slow if asked to, and sums rows."""

    def __init__(self, notes: str, seconds: float = 0.0) -> None:
        self.notes, self.seconds = notes, seconds

    def load_context(self, context: Any) -> None:
        with open(self.notes, "a") as file:
            file.write(f"{os.getpid()}\n")

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        time.sleep(self.seconds)
        return model_input.sum(axis=1)


SESSIONS = {
    "local": "local_spark(cores=2)",
    "connect": "local_spark(cores=2, connect=True)",
    "local-cluster": "local_spark(settings={'spark.master': 'local-cluster[2,1,1024]', 'spark.executor.memory': '1g'})",
}

COUNT = """
import sys, os, pyspark
os.environ["SPARK_HOME"] = os.path.dirname(pyspark.__file__)
from spark_tracking.spark.local import local_spark
from spark_tracking.scoring import score_table, score_udf
spark = {session}
model, source, target = sys.argv[1:]
predict = score_udf(spark, model, "double")
df = spark.range(0, 6400, 1, 64).selectExpr("CAST(id AS DOUBLE) AS a")
for _ in range(2):
    total = df.select(predict("a").alias("y")).groupBy().sum("y").collect()[0][0]
print("total", total)
for _ in range(2):
    result = score_table(spark, model, source, target, keep=["id"], inputs=["a"], result_type="double", show_progress=True)
    print(result.strategy, result.rows, result.reason)
for _ in range(2):
    result = score_table(spark, model, source, target, keep=["id"], inputs=["a"], result_type="double", since="last")
    print(result.strategy, result.rows)
rows = spark.read.format("delta").load(target)
print("rows", rows.count(), "right", rows.where("prediction = id + 0.5").count())
spark.stop()
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", SESSIONS)
def test_a_worker_process_loads_a_model_at_most_once_and_tables_are_scored_in_every_mode(mode: str, tmp_path: Path) -> None:
    import pyarrow as pa
    from deltalake import write_deltalake

    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    for part in range(3):
        ids = [*range(part * 100, part * 100 + 100)]
        write_deltalake(source, pa.table({"id": ids, "a": [number + 0.5 for number in ids]}), mode="append")
    notes = tmp_path / "notes"
    model = save_function(tmp_path / "model", Noting(str(notes)))
    script = COUNT.format(session=SESSIONS[mode])
    command = [sys.executable, "-c", script, model, source, target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert "total 20476800.0" in done.stdout, done.stderr[-3000:]
    # Where workers may be elsewhere Spark makes the table, and then they are asked whether they see it.
    first = "files 300" if mode == "local" else "udf 300 a new table is Spark's to make"
    assert first in done.stdout, done.stdout + done.stderr[-3000:]
    assert "files 300 the tables allow it\nfiles 300\nnone 0\nrows 900 right 900" in done.stdout, done.stdout + done.stderr[-3000:]
    assert "100%" in done.stderr
    loads = Counter(notes.read_text().split())
    assert 1 <= len(loads) <= 8  # worker processes, not 128 tasks
    assert set(loads.values()) == {1}


def _unpack(archive: str, digest: str, home: str) -> str:
    from unittest.mock import patch

    from spark_tracking.scoring.worker.model_cache import ModelCopy, unpacked

    with patch("pyspark.SparkFiles.get", return_value=archive), patch("tempfile.gettempdir", return_value=home):
        return str(unpacked(ModelCopy(digest, None, "model.tar", "a model")))


def test_workers_that_start_together_unpack_one_copy(tmp_path: Path) -> None:
    import tarfile

    model = save_function(tmp_path / "model", Noting(str(tmp_path / "notes")))
    digest = resolve(model).digest
    archive = tmp_path / "model.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(model, arcname=".")
    with ProcessPoolExecutor(4) as pool:
        folders = set(pool.map(_unpack, *zip(*[(str(archive), digest, str(tmp_path))] * 4, strict=True)))
    (folder,) = folders
    assert resolve(folder).digest == digest
    assert sorted(path.name for path in Path(folder).parent.iterdir()) == [digest, f"{digest}.lock"]


def test_the_folder_of_unpacked_models_must_be_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    home = model_cache.node_folder()
    assert home.stat().st_mode & 0o777 == 0o700
    home.chmod(0o777)
    with pytest.raises(Exception, match="must be a folder that belongs to user"):
        model_cache.node_folder()


JOB = """
import sys
from spark_tracking.spark.local import local_spark
from spark_tracking.scoring import score_table
spark = local_spark(cores=2)
model, source, target = sys.argv[1:]
print(score_table(spark, model, source, target, keep=["id"], result_type="double", job="job"), flush=True)
"""


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_and_the_next_run_does_it_all(tmp_path: Path) -> None:
    import pyarrow as pa
    from deltalake import write_deltalake

    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    write_deltalake(source, pa.table({"id": list(range(400)), "a": [1.0] * 400}))
    slow = save_function(tmp_path / "slow", Noting(str(tmp_path / "notes"), seconds=60))
    command = [sys.executable, "-c", JOB]
    first = subprocess.Popen([*command, slow, source, target], start_new_session=True)
    for _ in range(600):
        if (tmp_path / "notes").exists():  # workers have loaded the model: the job is in the middle
            break
        time.sleep(0.5)
    else:
        pytest.fail("the job never began")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert delta_files.newest_version(target) is None
    assert list((tmp_path / "target" / "_spark_tracking").glob("*.json"))
    quick = save_function(tmp_path / "quick", Noting(str(tmp_path / "notes")))
    for expected in ("400 rows scored", "Nothing new"):
        done = subprocess.run([*command, quick, source, target], capture_output=True, text=True, timeout=500, check=False)
        assert expected in done.stdout, done.stderr[-3000:]
    live = {file.path for file in delta_files.snapshot(target).files}
    assert {str(path.relative_to(target)) for path in Path(target).rglob("*.parquet")} == live
    assert not list((tmp_path / "target" / "_spark_tracking").glob("*.json"))


WORKER_KILLED = """
import os, signal, sys, threading, time
from spark_tracking.spark.local import local_spark
from spark_tracking.scoring import score_table
spark = local_spark(settings={"spark.master": "local[2,4]"})
model, source, target, notes = sys.argv[1:]
def kill():
    while not os.path.exists(notes) or not open(notes).read().strip():
        time.sleep(0.1)
    os.kill(int(open(notes).read().split()[0]), signal.SIGKILL)
threading.Thread(target=kill, daemon=True).start()
print(score_table(spark, model, source, target, keep=["id"], result_type="double", strategy="files"), flush=True)
"""


@pytest.mark.slow
def test_a_killed_worker_costs_a_retry_and_no_row(tmp_path: Path) -> None:
    import pyarrow as pa
    from deltalake import DeltaTable, write_deltalake

    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    for part in range(4):
        write_deltalake(source, pa.table({"id": list(range(part * 100, part * 100 + 100)), "a": [1.0] * 100}), mode="append")
    model = save_function(tmp_path / "model", Noting(str(tmp_path / "notes"), seconds=2))
    done = subprocess.run(
        [sys.executable, "-c", WORKER_KILLED, model, source, target, str(tmp_path / "notes")],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert "400 rows scored" in done.stdout, done.stderr[-3000:]
    assert sorted(DeltaTable(target).to_pyarrow_table()["id"].to_pylist()) == list(range(400))
    live = {file.path for file in delta_files.snapshot(target).files}
    assert {str(path.relative_to(target)) for path in Path(target).rglob("*.parquet")} == live


def test_a_big_estimators_arrays_are_mapped_and_it_predicts_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    from scoring_models import save_sklearn

    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(model_cache, "_BIG", 1 << 20)
    features = pd.DataFrame(np.random.default_rng(3).random((50_000, 4)), columns=list("abcd"))
    model = KNeighborsRegressor(algorithm="brute").fit(features, features["a"])
    folder = save_sklearn(tmp_path / "model", model, features, features["a"])
    loaded = model_cache.load(model_cache.ModelCopy("big", folder, None, "a model"))
    assert "estimator" in Path("/proc/self/maps").read_text()
    assert isinstance(loaded.get_raw_model()._fit_X, np.memmap)
    assert np.array_equal(loaded.predict(features.head(10)), model.predict(features.head(10)))


class Doubling(KNeighborsRegressor):
    """Of a class that only cloudpickle can pickle, as one that is defined in a notebook."""

    def predict(self, features: Any) -> Any:
        return super().predict(features) * 2


def test_a_big_estimator_of_a_notebooks_class_is_loaded_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scoring_models import save_sklearn

    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(model_cache, "_BIG", 1 << 10)
    monkeypatch.setattr(Doubling, "__module__", "__main__")
    features = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": 0.0})
    model = Doubling(n_neighbors=1).fit(features, features["a"])
    folder = save_sklearn(tmp_path / "model", model, features, features["a"])
    assert list(model_cache.load(model_cache.ModelCopy("notebook", folder, None, "a model")).predict(features)) == [2.0, 4.0, 6.0]
    assert not list(Path(model_cache.node_folder()).glob("*partial"))
