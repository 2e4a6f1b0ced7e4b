"""Artifacts of a lake on an object store go there by MLflow's own repositories."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from spark_tracking.lake import Lake
from tests.lake.object_store.emulators import ACCOUNT, BUCKET, Emulator, objects


def log_and_read_back(uri: str, tmp_path: Path, location: str | None) -> str:
    """Log a run with an artifact, and read it back; returns where it went."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("cloud", artifact_location=location))
    with mlflow.start_run() as run:
        mlflow.log_metric("loss", 0.25)
        mlflow.log_text("half", "notes/half.txt")
    client = mlflow.MlflowClient()
    assert [file.path for file in client.list_artifacts(run.info.run_id, "notes")] == ["notes/half.txt"]
    assert Path(client.download_artifacts(run.info.run_id, "notes/half.txt", str(tmp_path))).read_text() == "half"
    assert client.get_run(run.info.run_id).data.metrics == {"loss": 0.25}
    assert client.search_runs([run.info.experiment_id], "metrics.loss < 0.5")[0].info.run_id == run.info.run_id
    return str(run.info.artifact_uri)


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_on_s3_they_lie_below_the_lakes_root(cloud_lake: Lake, tmp_path: Path) -> None:
    where = log_and_read_back(str(cloud_lake.uri), tmp_path, None)
    assert where.startswith(f"{cloud_lake.uri.root}/artifacts/")
    assert where.removeprefix(cloud_lake.uri.root + "/") + "/notes/half.txt" in objects(cloud_lake.uri.root)


@pytest.mark.parametrize("store", ["azure"], indirect=True)
def test_on_azure_they_go_where_the_experiment_says(cloud_lake: Lake, store: Emulator, tmp_path: Path) -> None:
    """By blob storage: Azurite has no Data Lake endpoint, which MLflow asks for abfss locations."""
    location = f"wasbs://{BUCKET}@{ACCOUNT}.blob.core.windows.net/elsewhere"
    assert log_and_read_back(str(cloud_lake.uri), tmp_path, location).startswith(location)
