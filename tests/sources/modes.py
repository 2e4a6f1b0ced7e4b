"""The sources on one kind of Spark, as a program: python tests/sources/modes.py classic|cluster|connect|bare|poor

`bare` is a Connect server whose Python has not got this package, `poor` one whose Python has not even what Spark needs.

What each kind must do: find the sources by itself, follow `use`, see new runs on the same DataFrame, read in several tasks,
tell mistakes before a task runs, keep credentials out of sight. Used by tests and by matrix.sh, which varies Spark's version.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time

import mlflow
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient


def main(mode: str) -> None:
    """Check one kind of Spark."""
    folder = tempfile.mkdtemp()
    first, second = f"delta://{folder}/first", f"delta://{folder}/second"
    for uri, count in ((first, 4), (second, 2)):
        log(uri, count)
    os.environ["MLFLOW_TRACKING_URI"] = first  # what Spark's processes see from the start
    if mode in ("bare", "poor"):
        (check_bare if mode == "bare" else check_poor)(first)
        print(f"ok: {mode}")
        return
    spark = session(mode)
    os.environ["MLFLOW_TRACKING_URI"] = second  # what they do not see
    os.environ["MLFLOW_TRACKING_PASSWORD"] = "hunter2"
    try:
        check(spark, mode, first, second)
    finally:
        spark.stop()
    import pyspark

    print(f"ok: {mode}, Spark {pyspark.__version__}, Python {sys.version.split()[0]}")


def check(spark, mode: str, first: str, second: str) -> None:
    import spark_tracking as st

    def runs(*path: str, **options: object):
        return spark.read.format("mlflow-experiment").options(**options).load(*path)

    frame = runs("0", partitions=3)
    assert frame.count() == 4, "found by itself, with the server of Spark's environment"
    log(first, 3)
    assert frame.count() == 7, "the same frame sees new runs"
    assert frame.filter("metrics.acc >= 2 AND params.lr > '0.1'").count() == 3
    assert runs("0", filter="metrics.acc >= 2").count() == 3
    assert spark.read.format("mlflow").load("run_metrics_history").count() == 7
    st.use(spark)
    assert runs("0").count() == 2, "use() moves to this process's server"
    assert runs("0", tracking_uri=first).count() == 7, "options win"
    mlflow.set_tracking_uri(first)
    st.use(spark, experiment_id=0)
    assert runs().count() == 7
    start = time.perf_counter()
    assert runs().orderBy("start_time").limit(3).count() == 3
    print(f"warm query: {time.perf_counter() - start:.2f} s")
    try:
        runs("99").count()
        said = ""
    except Exception as error:
        said = str(error)
    assert "There is no experiment with id 99" in said, said
    assert "hunter2" not in said
    if mode != "connect":
        assert frame.rdd.getNumPartitions() == 3
        assert "hunter2" not in runs()._jdf.queryExecution().toString()
    check_scoring(spark)


class Later(mlflow.pyfunc.PythonModel):
    """A number and a day for each id."""

    def predict(self, context, model_input, params=None):
        import pandas as pd

        return pd.DataFrame({"twice": model_input["id"] * 2.0, "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(model_input["id"], "D")})


def check_scoring(spark) -> None:
    """A model scores as a column function, whichever kinds of functions this Spark has."""
    import datetime as dt

    import spark_tracking as st

    folder = tempfile.mkdtemp() + "/model"
    signature = mlflow.models.ModelSignature(inputs=mlflow.types.Schema([mlflow.types.ColSpec("long", "id")]))
    mlflow.pyfunc.save_model(folder, python_model=Later(), signature=signature, pip_requirements=[])
    predict = st.score_udf(spark, folder, "twice double, day timestamp")
    predict.check(spark.range(3))
    rows = spark.range(3).select(predict("id").alias("y")).select("y.*").collect()
    assert [tuple(row) for row in rows] == [(2.0 * day, dt.datetime(2024, 1, 1 + day)) for day in range(3)], rows


def check_bare(uri: str) -> None:
    """Nothing is found until `use` sends the package."""
    import sysconfig

    # This environment's packages, but not its .pth files, by which an editable install is found.
    spark = session("connect", new_python(sysconfig.get_path("purelib")))
    try:
        import spark_tracking as st

        st.use(spark, uri)
        assert spark.read.format("mlflow-experiment").load("0").count() == 4
        st.use(spark, uri, experiment_id=0)
        log(uri, 1)
        assert spark.read.format("mlflow-experiment").load().count() == 5
    finally:
        spark.stop()


def check_poor(uri: str) -> None:
    """`use` says what is wrong with the server's Python, where Spark would say it at the first read, and in pages."""
    spark = session("connect", new_python())
    try:
        import spark_tracking as st

        st.use(spark, uri)
        said = ""
    except st.errors.InvalidState as error:
        said = str(error)
    finally:
        spark.stop()
    assert said.startswith("The Spark Connect server's Python lacks "), said
    assert "pyarrow" in said and "Install this package where the server and its executors run" in said, said


def new_python(packages: str = "") -> str:
    """A Python that has the packages of a folder alone."""
    import venv
    from pathlib import Path

    python = tempfile.mkdtemp()
    venv.create(python, symlinks=True)
    (next(Path(python).glob("lib/*/site-packages")) / "others.pth").write_text(packages)
    return f"{python}/bin/python"


def log(uri: str, count: int) -> None:
    """Runs in experiment 0."""
    client = MlflowClient(uri)
    for i in range(count):
        run = client.create_run("0")
        client.log_batch(run.info.run_id, [Metric("acc", i, int(time.time() * 1000), 0)], [Param("lr", f"0.{i}")])


def session(mode: str, python: str = sys.executable):
    """A small Spark of the kind, with its Python."""
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = python
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    from pyspark.sql import SparkSession

    builder = SparkSession.builder
    if mode == "cluster":  # workers in processes of their own
        import pyspark

        os.environ["SPARK_HOME"] = os.path.dirname(pyspark.__file__)
        builder = builder.master("local-cluster[2,1,1024]")
    elif mode == "connect":  # the server is a process of its own
        os.environ["SPARK_TESTING"] = "1"  # a free port instead of 15002
        builder = builder.remote("local[2]")
    else:
        builder = builder.master("local[2]")
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.driver.memory": "1g",
    }
    for name, value in settings.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


if __name__ == "__main__":
    main(sys.argv[1])
