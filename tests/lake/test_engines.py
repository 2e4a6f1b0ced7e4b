"""The tables as other engines see them: the columns of Databricks' `system.mlflow`, in its order, then ours."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from spark_tracking.lake import Event, Lake
from tests.lake.making import START, param, points, run_created, tag

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
