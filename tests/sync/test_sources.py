"""Other sources than a database: a retired `mlruns` folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from spark_tracking.sync import sync
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
