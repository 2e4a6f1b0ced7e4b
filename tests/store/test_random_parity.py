"""Random calls, one after another, on MLflow's SQL stores and on a lake: each answer is the same, and so is what came of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import mlflow
import pytest
from mlflow.entities import Dataset, DatasetInput, ExperimentTag, InputTag, LoggedModelParameter, LoggedModelTag, Metric, Param, RunTag
from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag
from packaging.version import Version

pytestmark = pytest.mark.skipif(Version(mlflow.__version__) < Version("3.17"), reason="the oracle is the newest MLflow's SQL store")
CALLS = 80
KEYS, TEXTS, MODELS = ("a", "b", "c d", "mlflow.runName"), ("1", "2", "", "it's", "ü"), ("A", "B", "nobody's")
STAGES = ("Staging", "Production", "Archived", "None")
RUNS_WHERE = (
    "metrics.m > 0", "metrics.n != 1", "params.a = '1'", "params.a != '1'", "params.b IS NOT NULL", "tags.b LIKE '%'", "tags.k IS NULL",
    "status = 'FINISHED'", "run_name LIKE 'run 1%'", "metrics.`o p` <= 1 AND tags.a = '1'", "end_time > 1", "dataset.name = 'd1'", None,
)  # fmt: skip
RUNS_BY = ("run_name", "metrics.m", "metrics.n DESC", "params.a", "tags.b DESC", "end_time", "status")
VERSIONS_WHERE = (None, "name = 'A'", "tags.a = '1'", "version_number > 1", "tags.b != '2'")


class Calls:
    """One random walk; the same seed makes the same calls on every store that answers alike."""

    def __init__(self, store: Any, seed: int) -> None:
        self.store, self.random = store, random.Random(seed)
        self.runs, self.models, self.experiments = ["no-run"], ["m-none"], ["0", "77"]

    def walk(self) -> None:
        kinds = [self.write_run, self.write_run, self.life, self.experiment, self.model, self.registry, self.versions, self.read]
        for number in range(CALLS):
            self.random.choice(kinds)(number)

    def pair(self, of: Callable[[str, str], Any]) -> Any:
        return of(self.random.choice(KEYS), self.random.choice(TEXTS))

    def write_run(self, number: int) -> None:
        pick, run_id = self.random.choice, self.random.choice(self.runs[-6:])
        values = (0.0, 1.0, -1.5, 1e300)
        metrics = [Metric(pick(("m", "n", "o p")), pick(values), pick((0, 5)), pick((0, 1, 5))) for _ in range(pick((0, 1, 3)))]
        self.store.log_batch(run_id, metrics, [self.pair(Param)] * pick((0, 1)), [self.pair(RunTag)] * pick((0, 1)))
        label = [InputTag("mlflow.data.context", pick(("train", "test")))]
        self.store.log_inputs(run_id, [DatasetInput(Dataset(pick(("d1", "d2")), pick("12"), "type", "source"), label)] * pick((0, 1)))
        self.store.delete_tag(run_id, pick(KEYS))

    def life(self, number: int) -> None:
        pick = self.random.choice
        if run := self.store.create_run(pick(self.experiments), "user", number, [RunTag("a", pick(TEXTS))], f"run {number}"):
            self.runs.append(run.info.run_id)
        run_id = pick(self.runs)
        self.store.update_run_info(run_id, pick((None, 1, 3, 4)), pick((None, 5, 1000)), pick((None, "", f"new {number}")))
        getattr(self.store, pick(("delete_run", "restore_run", "get_run")))(pick(self.runs))

    def experiment(self, number: int) -> None:
        pick = self.random.choice
        if id := self.store.create_experiment(f"e{number % 40}", tags=[ExperimentTag("t", "1")]):
            self.experiments.append(id)
        id = pick(self.experiments)
        getattr(self.store, pick(("delete_experiment", "restore_experiment", "get_experiment", "restore_experiment")))(id)
        self.store.rename_experiment(id, f"q{number}")
        self.store.set_experiment_tag(id, self.pair(ExperimentTag))

    def model(self, number: int) -> None:
        pick = self.random.choice
        tags, params = [LoggedModelTag("t", "1")], [LoggedModelParameter("p", "1")]
        if model := self.store.create_logged_model(pick(self.experiments), f"m{number}", None, tags, params):
            self.models.append(model.model_id)
        id = pick(self.models)
        if self.models[-1] != "m-none":
            self.store.log_metric(pick(self.runs), Metric("m", 1.0, number, 1, model_id=self.models[-1]))
        self.store.set_logged_model_tags(id, [self.pair(LoggedModelTag)])
        getattr(self.store, pick(("delete_logged_model", "get_logged_model")))(id)

    def registry(self, number: int) -> None:
        pick, name = self.random.choice, self.random.choice(MODELS)
        self.store.create_registered_model(pick(MODELS[:2]), [self.pair(RegisteredModelTag)], "words")
        self.store.set_registered_model_alias(name, "x", pick((1, 2, 3)))
        self.store.set_registered_model_tag(name, self.pair(RegisteredModelTag))
        if not number % 9:
            self.store.delete_registered_model(name)
        self.store.rename_registered_model(name, pick(MODELS[:2]))

    def versions(self, number: int) -> None:
        pick, name, version = self.random.choice, self.random.choice(MODELS), self.random.choice((1, 2, 3))
        self.store.create_model_version(name, f"s3://b/{number}", "run", [self.pair(ModelVersionTag)], None, "words")
        self.store.transition_model_version_stage(name, version, pick(STAGES), pick((True, False)))
        self.store.set_model_version_tag(name, version, self.pair(ModelVersionTag))
        getattr(self.store, pick(("delete_model_version", "get_model_version", "get_model_version")))(name, version)
        self.store.get_model_version_by_alias(name, "x")

    def read(self, number: int) -> None:
        pick = self.random.choice
        by = [pick(RUNS_BY), "run_name", "start_time"]
        self.store.search_runs(self.experiments, pick(RUNS_WHERE), pick((1, 2, 3)), pick((2, 5, 1000)), by)
        self.store.get_metric_history(pick(self.runs), "m", pick((None, 2)))
        self.store.search_experiments(pick((1, 2, 3)), 100, pick((None, "name LIKE 'e%'", "tags.t = '1'", "tags.a != '1'")), ["name"])
        self.store.search_logged_models(
            self.experiments, pick((None, "tags.t = '1'", "metrics.m > 0")), None, 100, [{"field_name": "name"}]
        )
        self.store.search_model_versions(pick(VERSIONS_WHERE), 100, ["name", "version_number"])
        self.store.search_registered_models(pick((None, "name LIKE 'A%'", "tags.b != '2'")), 100, ["name"])


@pytest.mark.parametrize("seed", range(2))
def test_a_random_walk_is_answered_alike(on_both: Callable[[Callable[[Any], None]], None], seed: int) -> None:
    on_both(lambda store: Calls(store, seed).walk())
