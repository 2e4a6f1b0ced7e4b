"""Work that is done once, whatever happens in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as f
from scoring_models import NUMBERS

from spark_tracking.delta import files as delta_files
from spark_tracking.errors import InvalidInput, InvalidState
from spark_tracking.scoring import score_table
from spark_tracking.scoring.staging import _process, sweep


@pytest.fixture
def source(spark: SparkSession, tmp_path: Path) -> str:
    path = str(tmp_path / "source")
    spark.createDataFrame(NUMBERS.assign(id=range(200))).coalesce(1).write.format("delta").save(path)
    return path


def grow(spark: SparkSession, source: str, start: int) -> None:
    """Ten more rows; one more version."""
    rows = spark.range(start, start + 10, 1, 1).selectExpr("0.1D AS a", "0.2D AS b", "0.3D AS c", "id")
    rows.write.format("delta").mode("append").save(source)


def ids(spark: SparkSession, target: Path) -> list[int]:
    return sorted(row[0] for row in spark.read.format("delta").load(str(target)).select("id").collect())


@pytest.mark.parametrize("strategy", ["files", "udf"])
def test_only_what_is_new_is_scored_and_a_rerun_commits_nothing(
    spark: SparkSession, source: str, regressor: str, tmp_path: Path, strategy: Any
) -> None:
    target = tmp_path / "target"
    job: dict[str, Any] = {"keep": ["id"], "since": "last", "strategy": strategy}
    assert score_table(spark, regressor, source, str(target), **job).rows == 200
    version = delta_files.snapshot(str(target)).version
    assert score_table(spark, regressor, source, str(target), **job).status == "nothing new"
    assert delta_files.snapshot(str(target)).version == version
    grow(spark, source, 1000)
    grow(spark, source, 2000)
    spark.sql(f"OPTIMIZE delta.`{source}`")  # what is new now is in one file with what is old
    result = score_table(spark, regressor, source, str(target), **{**job, "strategy": "auto"})
    assert (result.rows, result.strategy) == (20, "udf")
    assert "compaction" in result.reason
    grow(spark, source, 3000)
    assert score_table(spark, regressor, source, str(target), **job).rows == 10
    assert ids(spark, target) == [*range(200), *range(1000, 1010), *range(2000, 2010), *range(3000, 3010)]


def test_a_named_job_over_all_rows_is_done_once_per_source_version_and_model(
    spark: SparkSession, source: str, registry: mlflow.MlflowClient, tmp_path: Path
) -> None:
    target = str(tmp_path / "target")
    assert score_table(spark, "models:/wine/1", source, target, keep=["id"], job="all").rows == 200
    assert score_table(spark, "models:/wine/1", source, target, keep=["id"], job="all").status == "nothing new"
    assert score_table(spark, "models:/wine/2", source, target, keep=["id"], job="all", mode="overwrite").rows == 200


def test_changed_rows_stop_an_append_and_are_merged_by_key(spark: SparkSession, source: str, regressor: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    score_table(spark, regressor, source, str(target), keep=["id"], since="last", job="j")
    spark.sql(f"UPDATE delta.`{source}` SET a = 100 WHERE id = 7")
    with pytest.raises(InvalidState, match="lost or changed rows between versions 0 and 1"):
        score_table(spark, regressor, source, str(target), keep=["id"], since="last", job="j")
    score_table(spark, regressor, source, str(target), keep=["id"], since="last", job="j", mode="merge", keys=["id"])
    rows = spark.read.format("delta").load(str(target))
    assert rows.count() == 200
    assert rows.where("id = 7 AND prediction > 100").count() == 1


def test_since_needs_a_delta_source(spark: SparkSession, source: str, regressor: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="needs a Delta source"):
        score_table(spark, regressor, spark.read.format("delta").load(source), str(tmp_path / "t"), since="last")


def test_two_runs_of_one_job_at_once_commit_once(spark: SparkSession, source: str, tmp_path: Path) -> None:
    at = delta_files.snapshot(source)
    assert delta_files.commit(at, [], mode="append", metadata={"userMetadata": "1"}, app=("job", 5)) == 1
    assert delta_files.commit(at, [], mode="append", metadata={"userMetadata": "2"}, app=("job", 5)) is None
    assert delta_files.snapshot(source).version == 1


def test_a_failed_job_leaves_no_commit_and_no_file(spark: SparkSession, source: str, regressor: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    score_table(spark, regressor, source, str(target), keep=["id"], strategy="files")
    before = sorted(target.rglob("*.parquet"))
    spark.range(5).select(f.col("id"), *[f.lit(None).cast("double").alias(name) for name in "abc"]).write.format("delta").mode(
        "append"
    ).save(source)
    with pytest.raises(Exception, match="NaN"):
        score_table(spark, regressor, source, str(target), keep=["id"], strategy="files")
    assert sorted(target.rglob("*.parquet")) == before
    assert delta_files.snapshot(str(target)).version == 1


def test_a_died_attempt_that_had_committed_keeps_its_files(spark: SparkSession, source: str, regressor: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    score_table(spark, regressor, source, str(target), keep=["id"], strategy="files")
    (folder,) = target.glob("score-*")
    note = target / "_spark_tracking" / f"{folder.name.removeprefix('score-')}.json"
    note.write_text(json.dumps({**_process(), "born": "never", "version": 0}))
    assert sweep(str(target)) == []
    assert len(ids(spark, target)) == 200
