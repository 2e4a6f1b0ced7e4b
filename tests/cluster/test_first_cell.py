"""`use`: where no cluster start could set anything, the first cell does the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import mlflow
import pytest

import spark_tracking as st
from spark_tracking.cluster import environment
from spark_tracking.errors import InvalidInput, InvalidSetting

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NOTEBOOK = """
    import sys, mlflow
    import spark_tracking as st
    from spark_tracking.spark.local import local_spark

    spark = local_spark("first cell", connect=sys.argv[2] == "connect")
    st.use(spark, sys.argv[1], experiment="team/{user}")

    def task(batches):
        for batch in batches:
            with st.executor_run(tracking, key=int(batch["id"].iloc[0])) as run:
                run.log_metric("in_task", 1.0)
            yield batch

    with mlflow.start_run() as run:
        mlflow.log_metric("m", 1.0)
        tracking = st.executor_tracking()
        spark.range(0, 2, 1, 2).mapInPandas(task, "id long").count()
    rows = spark.read.format("mlflow-experiment").load().collect()
    print("found", len(rows), mlflow.get_experiment(run.info.experiment_id).name, type(spark).__module__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["classic", "connect"])
def test_a_notebook_in_an_empty_environment_tracks_reads_and_logs_from_tasks_after_one_cell(tmp_path: Path, mode: str) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "JAVA_HOME") if name in os.environ}
    environ = {**kept, "SPARK_TESTING": "1", "USER": "ann", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-c", dedent(NOTEBOOK), f"delta://{tmp_path}/lake", mode]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300)
    assert "found 3 team/" in done.stdout, done.stderr
    assert ("connect" in done.stdout.split()[-1]) is (mode == "connect")


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("MLFLOW_TRACKING", "MLFLOW_REGISTRY", "SPARK_TRACKING"))]:
        monkeypatch.delenv(name)


def test_it_sets_exactly_what_a_start_exports(spark: SparkSession, lake_uri: str, unset: None) -> None:
    settings = {"SPARK_TRACKING_URI": lake_uri, "SPARK_TRACKING_EXPERIMENT": "team/{user}"}
    start = subprocess.run(
        [sys.executable, "-m", "spark_tracking.cluster.environment"],
        env={**os.environ, **settings}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    mlflow.MlflowClient(lake_uri).search_experiments()
    before = dict(os.environ)
    st.use(spark, lake_uri, experiment="team/{user}")
    now = {f"{name}={text}" for name, text in os.environ.items() if before.get(name) != text}
    exported = subprocess.run(["bash", "-c", f"{start.stdout} env"], env={}, capture_output=True, text=True, check=True).stdout
    assert now == {line for line in exported.splitlines() if line.startswith(("MLFLOW_", "SPARK_TRACKING_"))}
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == (lake_uri, lake_uri)


def test_settings_in_the_environment_count_where_nothing_was_chosen_and_code_comes_before_them(
    spark: SparkSession, lake_uri: str, tmp_path: Path, unset: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.MlflowClient(lake_uri).search_experiments()
    monkeypatch.setenv("SPARK_TRACKING_URI", lake_uri)
    chosen = f"sqlite:///{tmp_path}/chosen.db"
    mlflow.set_tracking_uri(chosen)
    mlflow.search_experiments()
    st.use(spark)
    assert mlflow.get_tracking_uri() == chosen
    mlflow.set_tracking_uri(None)
    st.use(spark)
    assert mlflow.get_tracking_uri() == lake_uri


def test_what_code_set_before_gives_way_and_what_it_sets_later_wins(
    spark: SparkSession, lake_uri: str, tmp_path: Path, unset: None
) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/before.db")
    mlflow.set_registry_uri(f"sqlite:///{tmp_path}/before.db")
    mlflow.MlflowClient(lake_uri).search_experiments()
    st.use(spark, lake_uri)
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == (lake_uri, lake_uri)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/later.db")
    assert mlflow.get_tracking_uri().endswith("later.db")


def test_a_second_call_leaves_nothing_of_the_first_server(spark: SparkSession, tmp_path: Path, unset: None) -> None:
    for name in ("one", "two"):
        uri = f"delta://{tmp_path}/{name}"
        mlflow.MlflowClient(uri).search_experiments()
        st.use(spark, uri)
        assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri(), os.environ["MLFLOW_REGISTRY_URI"]) == (uri, uri, uri)


def test_an_experiment_that_was_chosen_on_another_server_or_before_one_is_named_is_forgotten(
    spark: SparkSession, tmp_path: Path, unset: None
) -> None:
    one, two = f"delta://{tmp_path}/one", f"delta://{tmp_path}/two"
    mlflow.set_tracking_uri(one)
    chosen = mlflow.set_experiment("chosen").experiment_id
    mlflow.MlflowClient(two).search_experiments()
    st.use(spark, one)
    assert mlflow.tracking.fluent._get_experiment_id() == chosen
    st.use(spark, one, experiment="named")
    assert mlflow.get_experiment(mlflow.tracking.fluent._get_experiment_id()).name == "named"
    mlflow.set_experiment("chosen")
    del os.environ["SPARK_TRACKING_EXPERIMENT"]
    st.use(spark, two)
    assert mlflow.get_experiment(mlflow.tracking.fluent._get_experiment_id()).name != "chosen"


@pytest.mark.parametrize(
    ("uri", "options", "reason"),
    [
        ("adbazureml://x", {}, "retired"),
        ("delta:///Volumes/main/ml/lake", {}, "mounted object store"),
        ("https://ann:hush@h", {}, "MLFLOW_TRACKING_PASSWORD"),
        ("delta:///shared/lake", {"experiment": "{usr}"}, "Known are"),
        ("delta:///shared/lake", {"registry_uri": "ftp://x"}, "no tracking URI"),
    ],
)
def test_wrong_arguments_are_told_with_what_to_do_and_set_nothing(
    spark: SparkSession, unset: None, uri: str, options: dict[str, str], reason: str
) -> None:
    before = dict(os.environ)
    with pytest.raises(InvalidInput, match=reason) as caught:
        st.use(spark, uri, **options)  # type: ignore[arg-type]
    assert "hush" not in caught.value.message
    assert dict(os.environ) == before


def test_nothing_set_anywhere_says_what_to_set(spark: SparkSession, unset: None) -> None:
    with pytest.raises(InvalidInput, match="set_tracking_uri"):
        st.use(spark)


def test_a_failed_start_says_its_reason_in_the_first_cell(spark: SparkSession, unset: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_TRACKING_URI", "adbazureml://x")
    monkeypatch.setenv("SPARK_TRACKING_PROBLEM", "…")
    with pytest.raises(InvalidSetting, match="retired"):
        st.use(spark)


def test_the_experiment_of_the_setting_is_what_load_reads(spark: SparkSession, lake_uri: str, unset: None) -> None:
    environment.apply({"SPARK_TRACKING_URI": lake_uri, "SPARK_TRACKING_EXPERIMENT": "churn"})
    with mlflow.start_run():
        pass
    mlflow.create_experiment("another")
    st.use(spark)
    (row,) = spark.read.format("mlflow-experiment").load().collect()
    assert mlflow.get_experiment(row.experiment_id).name == "churn"
