"""The tables as other engines see them: the columns of Databricks' `system.mlflow`, in its order, then ours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from spark_tracking.lake import Event, Lake
from spark_tracking.lake.tables import BY_NAME
from tests.lake.making import START, param, points, run_created, tag

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# https://docs.databricks.com/aws/en/admin/system-tables/mlflow
SYSTEM_MLFLOW = {
    "experiments_latest": """account_id string, update_time timestamp, delete_time timestamp, workspace_id string,
        experiment_id string, name string, create_time timestamp""",
    "runs_latest": """account_id string, update_time timestamp, delete_time timestamp, workspace_id string, run_id string,
        experiment_id string, created_by string, start_time timestamp, end_time timestamp, run_name string, status string,
        params map<string,string>, tags map<string,string>,
        aggregated_metrics array<struct<metric_name:string,min_value:double,max_value:double,latest_value:double>>""",
    "run_metrics_history": """account_id string, insert_time timestamp, record_id string, workspace_id string,
        experiment_id string, run_id string, metric_name string, metric_time timestamp, metric_step bigint, metric_value double""",
}
COLUMNS = {table: [column.split()[0] for column in text.replace(", ", ",\n").split(",\n")] for table, text in SYSTEM_MLFLOW.items()}


@pytest.fixture
def filled(lake: Lake) -> Lake:
    lake.write([*run_created("r1", who="me"), param("r1", "p", "1")], [points("r1", "acc", 0.5, 0.9, 0.7), points("r1", "nan", math.nan)])
    lake.settle()  # a second refresh overwrites rows of the first
    lake.write([*run_created("r2"), tag("r1", "later", "\U0001f600"), Event("run", "r1", "attr", "status", "FINISHED")])
    lake.write((), [points("r1", "acc", 0.1, step=3)])
    lake.settle()
    return lake


def test_delta_rs_reads_the_system_columns_first(filled: Lake) -> None:
    for table, columns in COLUMNS.items():
        delta = DeltaTable(f"{filled.uri.root}/{table}")
        assert [f.name for f in delta.schema().fields][: len(columns)] == columns
    run = DeltaTable(f"{filled.uri.root}/runs_latest").to_pyarrow_table().sort_by("run_id").to_pylist()[0]
    assert (run["run_id"], run["status"], dict(run["tags"]), dict(run["params"])) == (
        "r1",
        "FINISHED",
        {"who": "me", "later": "\U0001f600"},
        {"p": "1"},
    )
    acc = run["aggregated_metrics"][0]
    assert acc == {"metric_name": "acc", "min_value": 0.1, "max_value": 0.9, "latest_value": 0.1}
    assert run["start_time"].timestamp() * 1000 == START
    points = DeltaTable(f"{filled.uri.root}/run_metrics_history").to_pyarrow_table()
    assert points.num_rows == 5 and points["metric_time"].type == pa.timestamp("us", tz="UTC")


def test_duckdb_reads_the_files_of_a_version(filled: Lake) -> None:
    duckdb = pytest.importorskip("duckdb")
    runs = DeltaTable(f"{filled.uri.root}/runs_latest").to_pyarrow_dataset()  # noqa: F841  # DuckDB finds it by its name
    points = DeltaTable(f"{filled.uri.root}/run_metrics_history").to_pyarrow_dataset()  # noqa: F841
    sql = "SELECT run_id, max(metric_value) FROM runs JOIN points USING (run_id) WHERE metric_name = 'acc' GROUP BY run_id"
    assert duckdb.sql(sql).fetchall() == [("r1", 0.9)]
    columns = [row[0] for row in duckdb.sql("DESCRIBE SELECT * FROM runs").fetchall()]
    assert columns[: len(COLUMNS["runs_latest"])] == COLUMNS["runs_latest"]


def test_spark_reads_the_system_columns_in_their_types_and_the_rows_of_delta_rs(filled: Lake, spark: SparkSession) -> None:
    for table, text in SYSTEM_MLFLOW.items():
        frame = spark.read.format("delta").load(f"{filled.uri.root}/{table}")
        expected = " ".join(text.split()).replace(", ", ",").split(",")
        columns = ",".join(f"{field.name} {field.dataType.simpleString()}" for field in frame.schema.fields)
        assert columns.startswith(",".join(expected))
    for table in BY_NAME:
        path = f"{filled.uri.root}/{table}"
        stored = DeltaTable(path).to_pyarrow_table()
        frame = spark.read.format("delta").load(path)
        assert frame.columns == stored.column_names
        assert sorted(map(repr, rows_of(frame.toArrow()))) == sorted(map(repr, rows_of(stored)))


def rows_of(table: pa.Table) -> list[dict[str, object]]:
    return table.drop(["state"] if "state" in table.column_names else []).to_pylist()


def test_a_raw_reader_sees_all_of_a_call_in_a_table_or_nothing(lake: Lake, spark: SparkSession) -> None:
    """A call's points come into `run_metrics_history` by one commit, whatever is flushed beside them."""
    table = f"{lake.uri.root}/run_metrics_history"
    lake.write(run_created("r1"))
    for call in range(6):
        lake.write((), [points("r1", f"call{call}", *range(50))])
        if call % 2:
            lake.flush()
    for version in range(DeltaTable(table).version() + 1):
        frame = spark.read.format("delta").option("versionAsOf", version).load(table)
        counts = [row["count"] for row in frame.groupBy("metric_name").count().collect()]
        assert set(counts) <= {50}
    assert len(counts) == 6
    lake.compact()
    assert spark.read.format("delta").load(table).count() == 300
