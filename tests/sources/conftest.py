"""A lake with a history, for Spark to read."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

T0 = 1_700_000_000_000


def log_runs(uri: str, experiment: str, numbers: range) -> None:
    """Finished runs with a metric `acc`, one a number."""
    client = MlflowClient(uri)
    for i in numbers:
        run = client.create_run(experiment, start_time=T0 + i, run_name=f"run {i}")
        client.log_batch(
            run.info.run_id, [Metric("acc", i / 10, T0, 0), Metric("loss", 1 / (i + 1), T0, 0)], [Param("learning_rate", f"0.{i}")]
        )
        client.set_terminated(run.info.run_id, end_time=T0 + 1000)


@pytest.fixture
def lake(tmp_path: Path) -> str:
    """A lake with runs 0-4 in experiment 1, and 5-6 in experiment 2."""
    uri = f"delta://{tmp_path / 'lake'}"
    client = MlflowClient(uri)
    assert [client.create_experiment(name) for name in ("first", "second")] == ["1", "2"]
    log_runs(uri, "1", range(5))
    log_runs(uri, "2", range(5, 7))
    return uri
