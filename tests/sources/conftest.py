"""A lake with a history, for Spark to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

LogRuns = Callable[[str, str, range], None]
T0 = 1_700_000_000_000


def _log_runs(uri: str, experiment: str, numbers: range) -> None:
    """Finished runs with a metric `acc`, one a number."""
    client = MlflowClient(uri)
    for i in numbers:
        run = client.create_run(experiment, start_time=T0 + i, run_name=f"run {i}")
        client.log_batch(
            run.info.run_id, [Metric("acc", i / 10, T0, 0), Metric("loss", 1 / (i + 1), T0, 0)], [Param("learning_rate", f"0.{i}")]
        )
        client.set_terminated(run.info.run_id, end_time=T0 + 1000)


@pytest.fixture
def log_runs() -> LogRuns:
    """Log finished runs to a server: URI, experiment, numbers."""
    return _log_runs


@pytest.fixture
def lake(tmp_path: Path) -> str:
    """A lake with runs 0-4 in experiment 1, and 5-6 in experiment 2."""
    return _lake(tmp_path)


@pytest.fixture(scope="session")
def still_lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same lake, for tests that only read."""
    return _lake(tmp_path_factory.mktemp("still"))


def _lake(folder: Path) -> str:
    uri = f"delta://{folder / 'lake'}"
    client = MlflowClient(uri)
    assert [client.create_experiment(name) for name in ("first", "second")] == ["1", "2"]
    _log_runs(uri, "1", range(5))
    _log_runs(uri, "2", range(5, 7))
    return uri
