"""Which experiment a process logs to that names none, and what its runs are tagged with."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import pytest
from mlflow.tracking.default_experiment.databricks_notebook_experiment_provider import DatabricksNotebookExperimentProvider

from spark_tracking import here
from spark_tracking.cluster import experiments, plugins

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_ids", {})
    monkeypatch.setattr(here, "_warned", set())
    DatabricksNotebookExperimentProvider._resolve_notebook_experiment_id.cache_clear()


def experiment_of_a_run() -> str:
    with mlflow.start_run() as run:
        pass
    return str(mlflow.get_experiment(run.info.experiment_id).name)


def test_without_any_setting_mlflow_is_as_it_always_was(database: str) -> None:
    assert experiment_of_a_run() == "Default"


def test_the_setting_names_the_experiment_and_its_user(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_TRACKING_EXPERIMENT", "team/{user}")
    monkeypatch.setenv("SPARK_USER", "ann")
    assert experiment_of_a_run() == "team/ann"
    assert experiment_of_a_run() == "team/ann"


def test_code_and_mlflows_own_variable_come_before_the_setting(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_TRACKING_EXPERIMENT", "ours")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    mlflow.create_experiment("theirs")
    assert experiment_of_a_run() == "theirs"
    mlflow.set_experiment("code")
    assert experiment_of_a_run() == "code"


def test_a_configured_cluster_gives_a_job_its_own_experiment(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_TRACKING_CONFIGURED", "abc")
    monkeypatch.setattr(sys, "argv", ["/jobs/nightly_churn.py"])
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)  # type: ignore[arg-type]
    assert experiment_of_a_run() == "nightly_churn"


def test_a_databricks_notebook_on_a_foreign_server_keeps_one_experiment_from_start_to_start(
    database: str, databricks_notebook: None
) -> None:
    first = experiment_of_a_run()
    plugins._ids.clear()  # the second start is another process
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert experiment_of_a_run() == first == "/Users/ann@example.com/churn"


def test_mlflows_own_databricks_provider_alone_fails_at_the_second_start(database: str, databricks_notebook: None) -> None:
    """Why ours comes first. When this fails, MLflow has mended it, and ours need not."""
    provider = DatabricksNotebookExperimentProvider()
    provider.get_experiment_id()
    provider._resolve_notebook_experiment_id.cache_clear()
    with pytest.raises(mlflow.exceptions.MlflowException, match="already exists"):
        provider.get_experiment_id()


def test_a_databricks_notebook_on_databricks_itself_is_left_to_mlflow(databricks_notebook: None) -> None:
    mlflow.set_tracking_uri("databricks")
    assert not plugins.ExperimentProvider().in_context()


def test_an_experiment_in_the_trash_is_named_with_what_to_do(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_TRACKING_EXPERIMENT", "gone")
    mlflow.delete_experiment(mlflow.create_experiment("gone"))
    with pytest.raises(mlflow.exceptions.MlflowException, match="trash"):
        plugins.ExperimentProvider().get_experiment_id()


def test_a_field_that_is_not_known_here_warns_once_and_leaves_mlflows_default(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_TRACKING_EXPERIMENT", "{cluster}")
    monkeypatch.setattr(experiments.place, "cluster", lambda: None)
    with pytest.warns(UserWarning, match="cluster"):
        assert experiment_of_a_run() == "Default"


def test_the_problem_of_the_start_is_warned_about_once_at_first_use(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_TRACKING_PROBLEM", "SPARK_TRACKING_URI='x' is no tracking URI.")
    with pytest.warns(UserWarning, match="did not set up this cluster.*is no tracking URI"):
        experiment_of_a_run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        experiment_of_a_run()


def own_tags_of_a_run() -> dict[str, str]:
    with mlflow.start_run() as run:
        pass
    return {name: text for name, text in mlflow.get_run(run.info.run_id).data.tags.items() if name.startswith("spark_tracking.")}


def test_a_process_that_nothing_of_ours_has_set_up_gets_no_tag(database: str, spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_tags_of_a_run() == {}
    monkeypatch.setenv("SPARK_TRACKING_TAGS", "true")
    assert own_tags_of_a_run() == {"spark_tracking.cluster": "local[2]", "spark_tracking.job": spark.conf.get("spark.app.name")}


def test_on_a_cluster_of_ours_no_tag_repeats_one_of_mlflows(
    database: str, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("SPARK_TRACKING_CONFIGURED", "abc")
    monkeypatch.setattr(sys, "argv", [f"/jobs/{spark.conf.get('spark.app.name')}.py"])
    assert own_tags_of_a_run() == {"spark_tracking.cluster": "local[2]"}
    request.getfixturevalue("databricks_notebook")
    assert own_tags_of_a_run() == {}


FIFTY_JOBS = """
import os, sys, mlflow, spark_tracking.store
gate, opened = os.pipe()
for number in range(50):
    if not os.fork():
        os.close(opened)
        os.read(gate, 1)  # until the parent has started all
        with mlflow.start_run() as run:
            mlflow.log_metric("m", number)
        open(f"{sys.argv[1]}/{number}", "w").write(run.info.experiment_id)
        os._exit(0)
os.close(opened)
print([os.wait()[1] for _ in range(50)] == [0] * 50)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["server", "lake"])
def test_fifty_jobs_that_start_together_create_one_experiment(
    kind: str, lake_uri: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Fifty processes, each with its first run; forked, so that MLflow is imported once."""
    uri = request.getfixturevalue("server") if kind == "server" else lake_uri
    name = f"together-{uuid.uuid4().hex}"
    environ = {**os.environ, "MLFLOW_TRACKING_URI": uri, "SPARK_TRACKING_EXPERIMENT": name, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "7"}
    (tmp_path / "ids").mkdir()
    command = [sys.executable, "-c", FIFTY_JOBS, str(tmp_path / "ids")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.split()[-1] == "True", done.stderr
    (number,) = {file.read_text() for file in (tmp_path / "ids").iterdir()}
    client = mlflow.MlflowClient(uri)
    assert client.get_experiment(number).name == name
    assert sorted(run.data.metrics["m"] for run in client.search_runs([number])) == list(range(50))
    assert [found.name for found in client.search_experiments()].count(name) == 1


@pytest.mark.parametrize("first", ["spark_tracking.errors", "spark_tracking.cluster.doctor", "spark_tracking.cluster.executors", "mlflow"])
def test_mlflow_finds_both_plug_ins_whatever_is_imported_first(first: str) -> None:
    code = (
        f"import warnings; warnings.simplefilter('error', UserWarning); import {first}; "
        "from mlflow.tracking.default_experiment.registry import _default_experiment_provider_registry as experiments; "
        "from mlflow.tracking.context.registry import _run_context_provider_registry as tags; "
        "print(type(next(iter(experiments))).__name__, any(type(t).__name__ == 'SourceTags' for t in tags))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ExperimentProvider", "True"]
