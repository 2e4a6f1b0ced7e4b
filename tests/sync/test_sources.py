"""Other sources than a database: a retired `mlruns` folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from spark_tracking.sync import sync
from tests.sync.conftest import shown, write_history


def test_an_mlruns_folder_arrives_once(tmp_path: Path, lake_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "mlruns"
    write_history(str(folder), tmp_path / "artifacts")
    before = shown(str(folder))
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    result = sync(str(folder), lake_uri)
    assert result.ok, result.failures
    # MLflow's file store tells the history of a metric that was logged for a model with step 0: that run is compared elsewhere.
    plain = {id for id, run in before["runs"].items() if "loss" not in run["data"][2]}
    assert len(plain) == 5
    arrived = shown(lake_uri)
    assert {id: arrived["runs"][id] for id in plain} == {id: before["runs"][id] for id in plain}
    assert arrived["models"] == before["models"]
    assert arrived["experiments"] == before["experiments"]
    assert sync(str(folder), lake_uri).wrote == 0
