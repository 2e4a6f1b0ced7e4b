"""A history on an MLflow database, and what a lake or server shows of it, as plain values that can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, LoggedModelOutput, Metric, Param, RunTag
from mlflow.tracking import MlflowClient

T0 = 1_700_000_000_000
INFO = ("run_name", "user_id", "status", "start_time", "end_time", "lifecycle_stage")


def write_history(uri: str, artifacts: Path) -> None:
    """Experiments, nested runs, deleted ones, odd names, NaN, data sets, logged and registered models."""
    client = MlflowClient(uri, registry_uri=uri)
    vision = client.create_experiment("vision", (artifacts / "vision").as_uri(), tags={"team": "a/b 'c' 🚀"})
    gone = client.create_experiment("gone", (artifacts / "gone").as_uri())
    runs = [
        client.create_run(vision, start_time=T0 + i, run_name=f"run {i}", tags={"mlflow.user": "ann", "i": str(i)}).info.run_id
        for i in range(6)
    ]
    client.set_tag(runs[1], "mlflow.parentRunId", runs[0])
    for i, run in enumerate(runs):
        points = [Metric("acc", i + step / 100, T0 + step, step) for step in range(5)]
        points += [Metric("odd/x y:z", value, T0, step) for step, value in enumerate([2.5, float("nan"), -1.0])]
        client.log_batch(run, points, [Param("lr", f"0.{i}"), Param("p" * 250, "ü" * 500)], [RunTag("quotes", "'\"🚀")])
        client.set_terminated(run, "FAILED" if i % 2 else "FINISHED", T0 + 1000 + i)
    data = Dataset("train", "d1", "local", '{"uri": "x"}', '{"s": 1}', "{}")
    client.log_inputs(runs[0], [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])
    model = client.create_logged_model(vision, "net", runs[0], {"kind": "cnn"}, {"depth": "3"}, "agent")
    client.log_metric(runs[0], "loss", 0.25, T0 + 5, 7, model_id=model.model_id, dataset_name="train", dataset_digest="d1")
    client.log_inputs(runs[1], models=[LoggedModelInput(model.model_id)])
    client.log_outputs(runs[0], [LoggedModelOutput(model.model_id, 2)])
    client.create_registered_model("wine", {"owner": "me"}, "A model")
    for _ in range(2):
        client.create_model_version("wine", f"runs:/{runs[0]}/model", runs[0], {"k": "v"}, description="first")
    client.set_registered_model_alias("wine", "champion", "2")
    client.transition_model_version_stage("wine", "1", "Archived")
    client.delete_run(runs[5])
    client.delete_experiment(gone)


def shown(uri: str) -> dict[str, Any]:
    """Everything a client sees, but artifact locations, times of update, and experiments' ids."""
    client = MlflowClient(uri, registry_uri=uri)
    names = {e.experiment_id: e.name for e in client.search_experiments(view_type=3)}
    runs = {}
    for run in client.search_runs(list(names), run_view_type=3):
        full, info = client.get_run(run.info.run_id), run.info
        history = {
            name: sorted((m.step, m.timestamp, repr(m.value)) for m in client.get_metric_history(info.run_id, name))
            for name in run.data.metrics
        }
        runs[info.run_id] = {
            "info": (
                names[info.experiment_id],
                info.run_name,
                info.user_id,
                info.status,
                info.start_time,
                info.end_time,
                info.lifecycle_stage,
            ),
            "data": (run.data.params, run.data.tags, {k: repr(v) for k, v in run.data.metrics.items()}, history),
            "inputs": sorted(str(d.to_dictionary()) for d in full.inputs.dataset_inputs),
            "models": ([m.model_id for m in full.inputs.model_inputs], [(m.model_id, m.step) for m in full.outputs.model_outputs]),
        }
    models = {m.model_id: _model(m, names) for m in client.search_logged_models(list(names))}
    versions = {
        (v.name, int(v.version)): (v.source, v.run_id, v.current_stage, v.description, v.tags, v.creation_timestamp)
        for v in client.search_model_versions("")
    }
    registered = {  # numbers of aliases are text in some stores
        m.name: (m.description, m.tags, {alias: int(number) for alias, number in m.aliases.items()}, m.creation_timestamp)
        for m in client.search_registered_models()
    }
    experiments = {
        e.name: (e.lifecycle_stage, e.tags, e.creation_time) for e in client.search_experiments(view_type=3) if e.name != "Default"
    }
    return {"experiments": experiments, "runs": runs, "models": models, "versions": versions, "registered": registered}


def portable(uri: str) -> dict[str, Any]:
    """The same with names in place of the ids that each server gives itself, without sync's own tags and the server's own times."""
    found = shown(uri)
    names = {id: run["info"][1] for id, run in found["runs"].items()} | {id: model[1] for id, model in found["models"].items()}

    def named(value: Any) -> Any:
        if isinstance(value, str):
            for id, name in names.items():
                value = value.replace(id, f"<{name}>")
            return value
        if isinstance(value, dict):
            return {named(k): named(v) for k, v in value.items() if not str(k).startswith("spark_tracking.")}
        return type(value)(map(named, value)) if isinstance(value, (list, tuple)) else value

    timeless = {
        "experiments": {name: facts[:-1] for name, facts in found["experiments"].items()},
        "models": {id: (*facts[:-2], facts[-1]) for id, facts in found["models"].items()},
        "versions": {id: tuple(None if fact == "" else fact for fact in facts[:-1]) for id, facts in found["versions"].items()},
        "registered": {name: facts[:-1] for name, facts in found["registered"].items()},
    }
    return {kind: named(timeless.get(kind, things)) for kind, things in found.items()}


def _model(m: Any, names: dict[str, str]) -> tuple[Any, ...]:
    points = [(x.key, x.value, x.step, x.timestamp, x.run_id, x.dataset_name, x.dataset_digest) for x in m.metrics or ()]
    facts = (names[m.experiment_id], m.name, m.model_type, m.source_run_id, m.status, m.params, m.tags, m.creation_timestamp)
    return (*facts, points)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the history; copy it, don't change it."""
    root = tmp_path_factory.mktemp("pristine")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    write_history(uri, root / "artifacts")
    return root / "mlflow.db"


@pytest.fixture
def database(pristine: Path, tmp_path: Path) -> str:
    """The URI of a database of this test's own that holds the history."""
    copied = tmp_path / "mlflow.db"
    copied.write_bytes(pristine.read_bytes())
    return f"sqlite:///{copied}"


@pytest.fixture(autouse=True)
def no_active_server() -> None:
    """A sync must get by without a tracking URI set in this process."""
    assert not mlflow.is_tracking_uri_set()
