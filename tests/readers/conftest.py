"""One history on an MLflow database and in a lake, and a server over each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, LoggedModelOutput, Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from tests.servers import mlflow_server

T0 = 1_700_000_000_000


def write_history(uri: str, artifacts: Path) -> None:
    """Experiments, runs (deleted ones, odd texts, NaN, infinities), data sets, models: the same calls on any server."""
    client = MlflowClient(uri, registry_uri=uri)
    vision = client.create_experiment("vision", artifact_location=(artifacts / "vision").as_uri(), tags={"team": "a"})
    other = client.create_experiment("other 'quoted'", artifact_location=(artifacts / "other").as_uri())
    gone = client.create_experiment("gone", artifact_location=(artifacts / "gone").as_uri())
    for i in range(12):
        run = client.create_run(vision if i % 3 else other, start_time=T0 + i // 2, run_name=f"run {i:02d}", tags={"i": str(i)})
        id = run.info.run_id
        points = [Metric("acc", i / 10 + step / 100, T0 + step, step) for step in range(i % 4 + 1)]
        points += [Metric("odd", value, T0, step) for step, value in enumerate([float("nan"), 2.5, -1.0] if i % 2 else [float("nan")])]
        params = [Param("lr", f"0.{i}"), Param("text", 'it\'s "x" ümläut 🚀' * (i + 1)), Param("empty", "")]
        client.log_batch(id, points, params, [RunTag("model", "svm" if i % 2 else "tree"), RunTag("UPPER", "Case")])
        if i < 3:
            data = Dataset(f"d{i}", f"digest{i}", "local", '{"uri": "x"}', '{"s": 1}', None)
            client.log_inputs(
                id, [DatasetInput(data, [InputTag("mlflow.data.context", "train")]), DatasetInput(Dataset("z", "0", "local", "{}"))]
            )
        if i % 5:
            client.set_terminated(id, "FAILED" if i % 2 else "FINISHED", T0 + 1000 + i)
        if i in (4, 5):
            client.delete_run(id)
    client.delete_experiment(gone)
    _write_models(client, vision)


def _write_models(client: MlflowClient, experiment: str) -> None:
    run = client.search_runs([experiment], "attributes.run_name = 'run 01'")[0]
    model = client.create_logged_model(experiment, "net", run.info.run_id, {"kind": "cnn"}, {"depth": "3"}, "agent")
    client.log_metric(run.info.run_id, "loss", 0.25, T0 + 5, 7, model_id=model.model_id)
    client.log_inputs(run.info.run_id, models=[LoggedModelInput(model.model_id)])
    client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, 2)])
    client.create_registered_model("wine", {"owner": "me"}, "A model")
    for _ in range(2):
        client.create_model_version("wine", "file:///tmp/model", run.info.run_id, {"k": "v"}, description="first")
    client.set_registered_model_alias("wine", "champion", "2")


@pytest.fixture(scope="session")
def history() -> Callable[[str, Path], None]:
    """What writes the history: to a tracking URI, with artifacts below a folder."""
    return write_history


@pytest.fixture(scope="session")
def database_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow database in SQLite that holds the history."""
    root = tmp_path_factory.mktemp("database")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    write_history(uri, root)
    return uri


@pytest.fixture(scope="session")
def lake_with_history(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A lake that holds the history."""
    root = tmp_path_factory.mktemp("lake")
    uri = f"delta://{root / 'lake'}"
    write_history(uri, root)
    return uri


@pytest.fixture(scope="session")
def server_uri(database_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow server` over the database."""
    with mlflow_server(database_uri, tmp_path_factory.mktemp("server")) as server:
        yield server.url


@pytest.fixture(autouse=True)
def no_active_server() -> None:
    """Readers must get by without a tracking URI set in this process."""
    assert not mlflow.is_tracking_uri_set()
