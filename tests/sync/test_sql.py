"""The published queries on a lake with known answers, by Spark and by a stranger's engine; and the tables in a Spark catalog."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datafusion
import pytest
from click.testing import CliRunner
from deltalake import DeltaTable
from mlflow.tracking import MlflowClient

import spark_tracking as st
from spark_tracking.address import LakeUri
from spark_tracking.cli import main
from spark_tracking.lake.tables import BY_NAME
from spark_tracking.mirror import sync
from spark_tracking.sources.catalog import register

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
QUERIES = sorted((NOTEBOOKS / "sql").glob("*.sql"))
Answer = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def known_lake(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A lake with the history: six runs of ann in 'vision', of which one is in the trash and two others failed."""
    uri = f"delta://{tmp_path_factory.mktemp('known') / 'lake'}"
    assert sync(f"sqlite:///{pristine}", uri).ok
    return uri


@pytest.fixture
def with_datafusion(known_lake: str) -> Answer:
    context = datafusion.SessionContext()
    for name in ("runs_latest", "experiments_latest", "run_metrics_history"):
        context.register_table(name, DeltaTable(str(LakeUri.parse(known_lake).path / name)))
    return lambda sql: [tuple(row.values()) for row in context.sql(sql).to_arrow_table().to_pylist()]


@pytest.fixture
def with_spark(known_lake: str, spark: SparkSession) -> Iterator[Answer]:
    register(spark, known_lake, schema="known")
    spark.sql("USE known")
    yield lambda sql: [tuple(row) for row in spark.sql(sql).collect()]
    spark.sql("USE default")
    spark.sql("DROP SCHEMA known CASCADE")


POINTS = [(f"run {i}", step, i + step / 100) for i in range(5) for step in range(5)]
SUMMARY = [(f"run {i}", "acc", i, i + 0.04, i + 0.04) for i in range(5)]
KNOWN: dict[str, Callable[[list[tuple[Any, ...]]], bool]] = {
    "runs_per_user": lambda rows: rows == [("ann", 5, 1)],
    "runs_per_experiment": lambda rows: [row[:3] for row in rows] == [("vision", 5, 2)],
    "failures_per_day": lambda rows: [(row[1], round(float(row[2]), 2)) for row in rows] == [(5, 0.4)],
    "last_value_of_a_metric": lambda rows: sorted(r[2] for r in rows if r[1] == "acc") == [i + 0.04 for i in range(6)],
    "least_reliable_experiments": lambda rows: [(n, c, round(float(s), 2)) for n, c, s in rows] == [("vision", 5, 0.4)],
    "metric_over_time": lambda rows: [(r[0], r[1], r[3]) for r in rows] == POINTS,
    "runs_with_a_param": lambda rows: [row[1:] for row in rows] == [("run 3", "FAILED", "0.3")],
    "metric_by_param": lambda rows: [(r[0], r[1], r[3]) for r in rows] == [(f"0.{i}", 1, i + 0.04) for i in (4, 3, 2, 1, 0)],
    "leaderboard": lambda rows: rows == [(f"run {i}", "ann", i + 0.04) for i in (4, 3, 2, 1, 0)],
    "mean_of_a_metric_per_experiment": lambda rows: [(n, c, round(v, 3)) for n, c, v in rows] == [("vision", 6, 2.52)],
    "children_of_runs": lambda rows: rows == [("run 0", 1, 1)],
    "trash": lambda rows: [row[:2] for row in rows] == [("experiment", "gone"), ("run", "run 5")],
    "metric_summary.spark": lambda rows: [row for row in rows if row[1] == "acc"] == SUMMARY,
    "duration_per_experiment.spark": lambda rows: rows == [("vision", 5, 1.0)],
}


def test_each_query_has_a_known_answer_and_says_what_it_tells() -> None:
    assert {query.stem for query in QUERIES} == KNOWN.keys()
    assert all(query.read_text().startswith("-- ") for query in QUERIES)


@pytest.mark.parametrize("query", [q for q in QUERIES if ".spark" not in q.name], ids=lambda path: path.stem)
def test_a_stranger_s_engine_gives_the_known_answer(query: Path, with_datafusion: Answer) -> None:
    rows = with_datafusion(query.read_text())
    assert KNOWN[query.stem](rows), rows


@pytest.mark.parametrize("query", QUERIES, ids=lambda path: path.stem)
def test_spark_gives_the_known_answer_on_registered_tables(query: Path, with_spark: Answer) -> None:
    rows = with_spark(query.read_text())
    assert KNOWN[query.stem](rows), rows


def test_register_prints_statements_that_a_session_can_run(known_lake: str, spark: SparkSession, tmp_path: Path) -> None:
    told = CliRunner().invoke(main, ["lake", "register", known_lake, "--catalog", "spark_catalog", "--schema", "from_file"])
    assert told.exit_code == 0, told.output
    for statement in told.output.strip().removesuffix(";").split(";\n"):
        spark.sql(statement)
    tables = {row.tableName for row in spark.sql("SHOW TABLES IN from_file").collect() if not row.isTemporary}
    assert tables == set(BY_NAME)
    assert spark.table("from_file.runs_latest").count() == 6
    spark.sql("DROP SCHEMA from_file CASCADE")
    assert (LakeUri.parse(known_lake).path / "runs_latest" / "_delta_log").is_dir()  # external: the lake keeps its tables


@pytest.mark.slow
def test_register_executes_into_the_catalog_of_the_folder(known_lake: str, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "spark-tracking"), "lake", "register", known_lake, "--execute"]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert told.returncode == 0, told.stderr
    assert ["mlflow.runs_latest", "6", "rows"] in [line.split() for line in told.stdout.splitlines()]
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "metastore_db").is_dir()


def test_the_register_notebook_runs(
    known_lake: str, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAKE", known_lake)
    monkeypatch.chdir(NOTEBOOKS)
    source = (NOTEBOOKS / "register.py").read_text().removeprefix("# Databricks notebook source\n")
    namespace: dict[str, Any] = {"spark": spark, "__name__": "__main__"}
    for cell in source.split("# COMMAND ----------"):
        if not cell.strip().startswith("# MAGIC"):
            exec(compile(cell, "notebooks/register.py", "exec"), namespace)
    spark.sql("USE default")
    spark.sql("DROP SCHEMA mlflow CASCADE")
    assert "vision" in capsys.readouterr().out


def test_the_leaderboard_as_of_a_time(database: str, lake_uri: str, spark: SparkSession) -> None:
    sync(database, lake_uri)
    client = MlflowClient(lake_uri)
    then = datetime.now(timezone.utc)
    best = client.search_runs(["1"], "attributes.run_name = 'run 4'")[0].info.run_id
    client.set_tag(best, "note", "late")
    client.log_metric(client.search_runs(["1"], "attributes.run_name = 'run 0'")[0].info.run_id, "acc", 99.0, step=9)

    def leaders(**options: Any) -> list[tuple[str, float]]:
        rows = st.read("runs", tracking_uri=lake_uri, **options).read_all().to_pylist()
        scored = [(dict(row["tags"])["mlflow.runName"], dict(row["metrics"])["acc"]) for row in rows]
        return sorted(scored, key=lambda pair: -pair[1])

    assert leaders()[0] == ("run 0", 99.0)
    assert leaders(as_of=then) == [(f"run {i}", i + 0.04) for i in (4, 3, 2, 1, 0)]
    frame = spark.read.format("mlflow").option("tracking_uri", lake_uri).option("as_of", then.isoformat()).load("run_metrics_history")
    assert frame.where("metric_name = 'acc'").agg({"metric_value": "max"}).first()[0] == 4.04
