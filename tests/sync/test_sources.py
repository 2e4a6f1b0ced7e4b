"""Other sources than a database: a retired `mlruns` folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from spark_tracking.mirror import sync
from tests.sync.conftest import T0, shown, write_history


def test_an_mlruns_folder_arrives_once(tmp_path: Path, lake_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "mlruns"
    write_history(str(folder), tmp_path / "artifacts")
    before = shown(str(folder))
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    result = sync(str(folder), lake_uri)
    assert result.ok, result.failures
    arrived = shown(lake_uri)
    # MLflow's file store tells a metric that was logged with a data set with step 0; its file has the step.
    with_data = [run["data"][3] for run in before["runs"].values() if "loss" in run["data"][3]]
    assert [history["loss"] for history in with_data] == [[(0, T0 + 5, "0.25")]]
    with_data[0]["loss"] = [(7, T0 + 5, "0.25")]
    assert arrived == before
    assert sync(str(folder), lake_uri).wrote == 0


def test_tables_in_the_layout_of_system_mlflow_arrive(database: str, tmp_path: Path, lake_uri: str) -> None:
    """As Databricks has them: these columns only, written by another engine."""
    import pyarrow as pa
    from deltalake import DeltaTable, write_deltalake

    sync(database, f"delta://{tmp_path / 'first'}")
    ends = {"experiments_latest": "create_time", "runs_latest": "aggregated_metrics", "run_metrics_history": "metric_value"}
    for name, last in ends.items():
        table = pa.table(DeltaTable(str(tmp_path / "first" / name)).to_pyarrow_table())
        write_deltalake(str(tmp_path / "mlflow" / name), table.select(range(table.schema.get_field_index(last) + 1)))
    result = sync(str(tmp_path / "mlflow"), lake_uri)
    assert result.ok, result.failures
    arrived, before = shown(lake_uri)["runs"], shown(database)["runs"]
    assert {id: (run["info"], run["data"]) for id, run in arrived.items()} == {id: (r["info"], r["data"]) for id, r in before.items()}
    assert result.points == 6 * 8 + 1
    assert sync(str(tmp_path / "mlflow"), lake_uri).wrote == 0
    write_deltalake(str(tmp_path / "mlflow" / "run_metrics_history"), _one_more_point(tmp_path), mode="append")
    assert sync(str(tmp_path / "mlflow"), lake_uri).points == 1


def _one_more_point(folder: Path) -> object:
    from deltalake import DeltaTable

    return DeltaTable(str(folder / "mlflow" / "run_metrics_history")).to_pyarrow_table().slice(0, 1).set_column(8, "metric_step", [[99]])


def test_a_lake_is_a_source_by_its_path_too(database: str, tmp_path: Path, lake_uri: str) -> None:
    sync(database, str(tmp_path / "first"))
    assert sync(str(tmp_path / "first"), lake_uri).ok
    assert sync(f"delta://{tmp_path / 'first'}", lake_uri).wrote == 0
    assert shown(lake_uri) == shown(database)
