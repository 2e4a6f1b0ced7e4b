"""A scoring job from outside: its run, its progress, its command, and what happens around it while it runs."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from pyspark.sql import DataFrame, SparkSession
from scoring_models import NUMBERS, save_function

from spark_tracking.cli import main
from spark_tracking.delta import files as delta_files
from spark_tracking.delta.files import NewFile
from spark_tracking.errors import InvalidState
from spark_tracking.scoring import history, score_table


@pytest.fixture
def source(spark: SparkSession, tmp_path: Path) -> str:
    """200 rows with id, a, b, c in two files; version 0."""
    path = str(tmp_path / "source")
    spark.createDataFrame(NUMBERS.assign(id=range(200))).repartition(2).write.format("delta").save(path)
    return path


def read(spark: SparkSession, path: str) -> DataFrame:
    return spark.read.format("delta").load(path)


@pytest.mark.parametrize("strategy", ["files", "udf"])
def test_a_run_records_source_model_counts_and_rates(
    spark: SparkSession, source: str, registry: mlflow.MlflowClient, tmp_path: Path, strategy: Any
) -> None:
    mlflow.set_experiment("scoring")
    result = score_table(
        spark, "models:/wine@champion", source, str(tmp_path / "t"), keep=["id"], job="nightly", strategy=strategy, track=True
    )
    assert mlflow.active_run() is None
    run = registry.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["rows"] == 200
    assert run.data.metrics["rows_per_second"] == pytest.approx(200 / run.data.metrics["seconds"])
    params, tags = run.data.params, run.data.tags
    assert (params["model_name"], params["model_version"], params["model_alias"]) == ("wine", "1", "champion")
    assert (params["source"], params["target"], params["strategy"]) == (source, str(tmp_path / "t"), strategy)
    assert (tags["spark_tracking.source_version"], tags["spark_tracking.status"]) == ("0", "scored")
    (given,) = run.inputs.dataset_inputs
    assert json.loads(given.dataset.source)["path"].endswith(source)
    assert {tag.key: tag.value for tag in given.tags}["mlflow.data.context"] == "scoring"


def test_within_a_run_the_jobs_run_is_its_child(spark: SparkSession, source: str, registry: mlflow.MlflowClient, tmp_path: Path) -> None:
    mlflow.set_experiment("scoring")
    with mlflow.start_run() as parent:
        result = score_table(spark, "models:/wine/1", source, str(tmp_path / "t"), track=True)
        assert mlflow.active_run().info.run_id == parent.info.run_id
    assert registry.get_run(result.run_id).data.tags["mlflow.parentRunId"] == parent.info.run_id


@pytest.mark.parametrize("strategy", ["files", "udf"])
def test_progress_is_shown_when_asked_for_and_not_without_a_terminal(
    spark: SparkSession, source: str, regressor: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], strategy: Any
) -> None:
    score_table(spark, regressor, source, str(tmp_path / "t"), keep=["id"], strategy=strategy)
    assert capfd.readouterr().err == ""
    score_table(spark, regressor, source, str(tmp_path / "t"), keep=["id"], strategy=strategy, show_progress=True)
    shown = capfd.readouterr().err
    assert "scoring" in shown and "100%" in shown


class Slow(mlflow.pyfunc.PythonModel):
    """Says in a file that it is at work, and waits for another file to appear."""

    def __init__(self, folder: str, answer: float) -> None:
        self.folder, self.answer = Path(folder), answer

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        (self.folder / "working").touch()
        for _ in range(600):
            if (self.folder / "go on").exists():
                break
            time.sleep(0.05)
        return [self.answer] * len(model_input)


def wait_for(file: Path) -> None:
    for _ in range(1200):
        if file.exists():
            return
        time.sleep(0.05)
    pytest.fail(f"{file} never appeared")


def test_an_alias_that_moves_during_the_job_changes_nothing_in_it(
    spark: SparkSession, source: str, registry: mlflow.MlflowClient, tmp_path: Path
) -> None:
    registry.create_registered_model("slow")
    for answer in (1.0, 2.0):
        path = save_function(tmp_path / f"model{answer}", Slow(str(tmp_path), answer))
        registry.create_model_version("slow", path)
    registry.set_registered_model_alias("slow", "champion", "1")
    target = str(tmp_path / "target")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(score_table, spark, "models:/slow@champion", source, target, keep=["id"])
        wait_for(tmp_path / "working")
        registry.set_registered_model_alias("slow", "champion", "2")
        (tmp_path / "go on").touch()
        result = future.result(120)
    assert result.model["model_version"] == "1"
    assert [row[0] for row in read(spark, target).select("prediction").distinct().collect()] == [1.0]
    assert history(target)[0].facts["model_version"] == "1"
    assert score_table(spark, "models:/slow@champion", source, target, keep=["id"]).model["model_version"] == "2"


@pytest.mark.parametrize("strategies", [("files", "files"), ("files", "udf"), ("udf", "udf")])
def test_two_jobs_that_append_to_one_target_at_once_both_get_in(
    spark: SparkSession, source: str, regressor: str, tmp_path: Path, strategies: tuple[Any, Any]
) -> None:
    target = str(tmp_path / "target")
    score_table(spark, regressor, source, target, keep=["id"], where="id < 0")
    barrier = threading.Barrier(2)

    def run(strategy: Any) -> Any:
        barrier.wait()
        return score_table(spark, regressor, source, target, keep=["id"], strategy=strategy)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run, strategies))
    assert [result.rows for result in results] == [200, 200]
    assert len({result.target_version for result in results}) == 2
    assert read(spark, target).count() == 400


def test_of_two_runs_of_one_job_at_once_one_commits(spark: SparkSession, source: str, regressor: str, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    score_table(spark, regressor, source, target, keep=["id"], where="id < 0")
    barrier = threading.Barrier(2)

    def run(strategy: Any) -> Any:
        barrier.wait()
        try:
            return score_table(spark, regressor, source, target, keep=["id"], strategy=strategy, since="last", job="one").status
        except Exception as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        statuses = sorted(pool.map(run, ["files", "udf"]))
    assert "scored" in statuses
    assert read(spark, target).count() == 200
    assert score_table(spark, regressor, source, target, keep=["id"], since="last", job="one").status == "nothing new"


@pytest.mark.parametrize("modes", [("overwrite_partitions", "overwrite_partitions"), ("overwrite", "overwrite_partitions")])
def test_of_two_that_replace_the_same_rows_at_once_one_stays(spark: SparkSession, tmp_path: Path, modes: tuple[Any, Any]) -> None:
    target = str(tmp_path / "target")
    spark.range(10).selectExpr("id", "id % 2 AS part").write.format("delta").partitionBy("part").save(target)
    ready = threading.Barrier(2)

    def run(name: str, mode: Any) -> Any:
        at = delta_files.snapshot(target)
        ready.wait()
        try:
            delta_files.commit(at, [NewFile(name, 1, {"part": "1"}, "{}")], mode=mode, metadata={"userMetadata": name})
        except InvalidState as error:
            return str(error)

    for number in range(10):
        names = [f"{number}-{place}.parquet" for place in (0, 1)]
        with ThreadPoolExecutor(2) as pool:
            errors = [error for error in pool.map(run, names, modes) if error]
        live = [file.path for file in delta_files.snapshot(target).files if file.partition["part"] == 1]
        assert len(live) == 1 and live[0] in names
        assert all("Another job changed the same rows" in error for error in errors)
        assert len(errors) < 2


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["score", *arguments])


def test_the_command_scores_and_shows_which_model_wrote_what(
    spark: SparkSession, source: str, registry: mlflow.MlflowClient, tmp_path: Path
) -> None:
    target = str(tmp_path / "target")
    done = command("models:/wine@champion", source, target, "--keep", "id", "--since", "last", "--job", "nightly")
    assert done.exit_code == 0, done.output
    assert "200 rows scored with wine version 1" in done.output
    again = command("models:/wine@champion", source, target, "--keep", "id", "--since", "last", "--job", "nightly", "--json")
    assert json.loads(again.output)["status"] == "nothing new"
    more = command(
        "models:/wine/2", source, target, "--keep", "id,a", "--mode", "overwrite", "--prediction", "kind", "--where", "id < 50", "--json"
    )
    assert json.loads(more.output)["rows"] == 50
    assert read(spark, target).columns == ["id", "a", "kind"]
    told = command("--history", target)
    assert "wine version 2" in told.output and "wine version 1" in told.output
    assert f"from {source} version 0" in told.output
    assert [commit["model_version"] for commit in json.loads(command("--history", target, "--json").output)] == ["2", "1"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("models:/wine/1",), 2, "Give MODEL_URI, SOURCE and TARGET"),
        (("models:/wine/99", "SOURCE", "t/t"), 2, "models:/wine/99"),
        (("models:/wine/1", "./nowhere", "t/t"), 2, "There is no table or Parquet folder './nowhere'"),
        (("models:/wine/1", "SOURCE", "t/t", "--since", "yesterday"), 2, "expected 'last' or a version number"),
        (("models:/wine/1", "SOURCE", "t/t", "--params", "{"), 2, "expected a JSON object"),
        (("--history", "./nowhere"), 2, "no Delta table at './nowhere'"),
    ],
)
def test_what_goes_wrong_is_one_line(
    spark: SparkSession, source: str, registry: mlflow.MlflowClient, arguments: tuple[str, ...], code: int, message: str
) -> None:
    failed = command(*[source if argument == "SOURCE" else argument for argument in arguments])
    assert failed.exit_code == code
    assert message in failed.output
    assert "Traceback" not in failed.output
