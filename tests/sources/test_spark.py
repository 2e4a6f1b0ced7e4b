"""Spark reads tracking servers by `format("mlflow-experiment")` and `format("mlflow")`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags
from pyspark.errors import AnalysisException, PySparkException

import spark_tracking as st
from spark_tracking.errors import SparkTrackingError
from spark_tracking.readers.schemas import TABLES

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

LogRuns = Callable[[str, str, range], None]


def experiment(spark: SparkSession, *ids: str, **options: object) -> DataFrame:
    return spark.read.format("mlflow-experiment").options(**options).load(*ids)  # type: ignore[arg-type]


def names(frame: DataFrame) -> list[str]:
    return sorted(row[0] for row in frame.select("tags.`mlflow.runName`").collect())


def test_the_schema_is_the_one_that_databricks_documents(spark: SparkSession, still_lake: str) -> None:
    frame = experiment(spark, "1", tracking_uri=still_lake)
    assert frame.schema.simpleString() == (
        "struct<run_id:string,experiment_id:string,metrics:map<string,double>,params:map<string,string>,tags:map<string,string>,"
        "start_time:timestamp,end_time:timestamp,status:string,artifact_uri:string>"
    )


def test_databricks_examples_run_unchanged_after_use(spark: SparkSession, still_lake: str) -> None:
    mlflow.set_tracking_uri(still_lake)
    mlflow.set_experiment("first")
    assert repr(st.use(spark)) == f"Spark reads {still_lake}, experiment 'first' (1)."
    df = spark.read.format("mlflow-experiment").load()
    assert names(df) == [f"run {i}" for i in range(5)]
    assert names(spark.read.format("mlflow-experiment").load("2")) == ["run 5", "run 6"]
    assert spark.read.format("mlflow-experiment").load("1,2").count() == 7
    assert spark.read.format("mlflow-experiment").load(["1", "2"]).count() == 7
    by_name = mlflow.get_experiment_by_name("second").experiment_id
    assert spark.read.format("mlflow-experiment").load(by_name).count() == 2
    assert names(df.filter("metrics.loss < 0.3 AND params.learning_rate > '0.3'")) == ["run 4"]
    assert df.orderBy("metrics.acc desc").count() == 5
    assert df.orderBy(df["metrics.acc"].desc()).first()["metrics"]["acc"] == 0.4
    df.createOrReplaceTempView("runs")
    assert spark.sql("SELECT max(metrics['acc']) FROM runs").first()[0] == 0.4


def test_the_same_frame_sees_what_was_logged_since(spark: SparkSession, lake: str, log_runs: LogRuns) -> None:
    frame = experiment(spark, "1", tracking_uri=lake, partitions=3)
    good = frame.filter("metrics.acc > 0.25")
    frame.createOrReplaceTempView("fresh")
    assert (frame.count(), good.count()) == (5, 2)
    log_runs(lake, "1", range(7, 9))
    assert (frame.count(), good.count(), frame.count()) == (7, 4, 7)
    assert spark.sql("SELECT count(*) FROM fresh").first()[0] == 7
    assert frame.alias("a").join(frame.alias("b"), "run_id").count() == 7


def test_version_and_timestamp_pin_one_state_for_all_actions(
    spark: SparkSession, lake: str, log_runs: Callable[[str, str, range], None]
) -> None:
    from datetime import datetime, timezone

    from spark_tracking.lake import Lake

    Lake.open(lake).settle()
    before = datetime.now(timezone.utc).isoformat()
    pinned = experiment(spark, "1", tracking_uri=lake, timestamp=before)
    assert pinned.count() == 5
    log_runs(lake, "1", range(7, 9))
    assert (pinned.count(), experiment(spark, "1", tracking_uri=lake).count()) == (5, 7)


def test_every_table_can_be_loaded_with_its_columns(spark: SparkSession, still_lake: str) -> None:
    st.use(spark, still_lake)
    counts = {}
    for table in TABLES:
        frame = spark.read.format("mlflow").load(table)
        assert frame.columns == TABLES[table].schema.names
        counts[table] = frame.count()
    expected = {"runs": 7, "runs_latest": 7, "run_metrics_history": 14, "experiments_latest": 3}
    assert counts == {**dict.fromkeys(TABLES, 0), **expected}


def test_a_database_is_read_like_a_lake(spark: SparkSession, tmp_path: Path, log_runs: LogRuns) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MlflowClient(uri).create_experiment("first")
    log_runs(uri, "1", range(4))
    frame = experiment(spark, tracking_uri=uri, experiment_names="first", partitions=2)
    assert names(frame) == [f"run {i}" for i in range(4)]
    log_runs(uri, "1", range(4, 5))
    assert frame.count() == 5


def test_filter_view_and_times_are_options(spark: SparkSession, still_lake: str) -> None:
    assert names(experiment(spark, "1", tracking_uri=still_lake, filter="metrics.acc > 0.2 AND params.learning_rate != '0.3'")) == ["run 4"]
    assert experiment(spark, "1", tracking_uri=still_lake, view_type="deleted_only").count() == 0
    assert names(experiment(spark, "1", tracking_uri=still_lake, start_after=1_700_000_000_003)) == ["run 3", "run 4"]


def test_use_again_moves_the_session_to_another_server(
    spark: SparkSession, lake: str, tmp_path: Path, log_runs: Callable[[str, str, range], None]
) -> None:
    st.use(spark, lake, experiment_id="2")
    assert experiment(spark).count() == 2
    other = f"sqlite:///{tmp_path / 'other.db'}"
    log_runs(other, "0", range(3))
    st.use(spark, other, experiment_id="0")
    assert experiment(spark).count() == 3


def test_a_run_on_another_server_than_spark_reads_says_so_once_use_was_called(
    spark: SparkSession, still_lake: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    st.use(spark, still_lake)
    mlflow.set_tracking_uri(still_lake)
    resolve_tags()
    assert not [w for w in recwarn if "Spark still reads" in str(w.message)]
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.warns(UserWarning, match=r"Spark still reads delta:///.*Call it again to follow"), mlflow.start_run():
        pass


def test_scala_finds_the_sources_by_the_same_names(spark: SparkSession, still_lake: str) -> None:
    reader = spark._jsparkSession.read().format("mlflow-experiment").option("tracking_uri", still_lake)
    assert reader.load("1").count() == 5
    assert spark._jsparkSession.read().format("mlflow").option("tracking_uri", still_lake).load("runs_latest").count() == 7


def test_an_experiment_is_read_in_as_many_parts_as_asked_for(spark: SparkSession, still_lake: str) -> None:
    assert experiment(spark, "1", tracking_uri=still_lake, partitions=3).rdd.getNumPartitions() == 3


def test_mistakes_are_told_at_load_with_what_to_do(spark: SparkSession, still_lake: str) -> None:
    with pytest.raises(AnalysisException, match="There is no experiment with id 77"):
        experiment(spark, "77", tracking_uri=still_lake)
    with pytest.raises(AnalysisException, match="There is no table 'runs_lates'"):
        spark.read.format("mlflow").option("tracking_uri", still_lake).load("runs_lates")


@pytest.mark.parametrize("format", ["mlflow", "mlflow-experiment"])
def test_a_catalog_table_is_refused_and_not_read_from_somewhere_else(spark: SparkSession, still_lake: str, format: str) -> None:
    st.use(spark, still_lake, experiment_id="2")
    path = "runs_latest" if format == "mlflow" else "1"
    with pytest.raises(PySparkException, match="Make a view instead"):
        spark.sql(f"CREATE TABLE lost_options USING `{format}` OPTIONS (path '{path}')")
    spark.sql(f"CREATE OR REPLACE TEMPORARY VIEW kept_options USING `{format}` OPTIONS (path '{path}')")
    assert spark.table("kept_options").count() == (7 if format == "mlflow" else 5)


def test_no_credential_shows_in_plans_reprs_or_errors(spark: SparkSession, still_lake: str) -> None:
    os.environ["MLFLOW_TRACKING_PASSWORD"] = "hunter2"
    os.environ["PGPASSWORD"] = "hunter3"
    st.use(spark, still_lake, experiment_id="1")
    frame = experiment(spark)
    assert frame.count() == 5
    execution = frame._jdf.queryExecution()
    shown = [execution.toString(), execution.logical().toJSON(), execution.executedPlan().toString(), repr(frame)]
    with pytest.raises(AnalysisException) as caught:
        experiment(spark, "99")
    for text in (*shown, str(caught.value)):
        assert "hunter" not in text


def test_a_part_is_read_in_batches_of_bounded_size(still_lake: str) -> None:
    import pickle

    from spark_tracking.sources import datasource

    source = datasource.ExperimentSource({"path": "1", "tracking_uri": still_lake})
    reader = pickle.loads(pickle.dumps(source)).reader(source.schema())
    parts = reader.partitions()
    batches = [batch for part in parts for batch in reader.read(part)]
    assert sum(batch.num_rows for batch in batches) == 5
    assert max(batch.num_rows for batch in batches) <= datasource.SLICE_ROWS


def test_our_sentence_comes_before_any_traceback(spark: SparkSession, still_lake: str) -> None:
    st.use(spark, still_lake)
    for ids, said in (((), "load() names no experiment"), (("77",), "There is no experiment with id 77")):
        with pytest.raises(PySparkException) as caught:
            experiment(spark, *ids).collect()
        assert said in str(caught.value)[:300]


def test_workers_of_another_python_are_told_with_what_to_set(
    spark: SparkSession, still_lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import venv

    venv.create(tmp_path / "other", with_pip=False)
    monkeypatch.setattr(spark.sparkContext, "pythonExec", str(tmp_path / "other" / "bin" / "python"))
    for call in (lambda: st.use(spark, still_lake), st.local_spark):
        with pytest.raises(SparkTrackingError, match=r"lacks spark_tracking.*PYSPARK_PYTHON"):
            call()
    (finding,) = [found for found in st.doctor(spark, read_only=True).findings if found.subject == "executors"]
    assert "lacks spark_tracking" in finding.text and "PYSPARK_PYTHON" in finding.fix
