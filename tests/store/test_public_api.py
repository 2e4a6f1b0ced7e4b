"""MLflow's public API end to end on a lake, with nothing of ours in the calling code; alone and behind `mlflow server`."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, ViewType
from mlflow.exceptions import MlflowException
from packaging.version import Version

from spark_tracking.store import scorer_store
from tests.servers import mlflow_server

FEATURES = pd.DataFrame({"a": np.arange(40.0), "b": np.arange(40.0) % 7})
TARGET = (FEATURES["a"] > 20).astype(int)


@pytest.fixture
def on_lake(lake_uri: str) -> str:
    """The tracking URI is the lake's."""
    mlflow.set_tracking_uri(lake_uri)
    return lake_uri


def train_and_register(name: str) -> str:
    """A model, logged in a run, registered, with an alias; returns the run's id."""
    from sklearn.linear_model import LogisticRegression

    with mlflow.start_run() as run:
        mlflow.log_input(mlflow.data.from_pandas(FEATURES, name="features"), "training", tags={"x": "y"})
        model = LogisticRegression().fit(FEATURES, TARGET)
        info = mlflow.sklearn.log_model(model, name="model", serialization_format="cloudpickle")
        mlflow.log_metric("accuracy", 0.9, model_id=info.model_id)
        mlflow.log_dict({"k": 1}, "notes/k.json")
    version = mlflow.register_model(info.model_uri, name)
    MlflowClient().set_registered_model_alias(name, "champion", version.version)
    return str(run.info.run_id)


def assert_all_is_there(name: str, run_id: str) -> None:
    """What `train_and_register` did, seen through every kind of read."""
    client = MlflowClient()
    run = client.get_run(run_id)
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, {t.key: t.value for t in dataset.tags}) == ("features", {"mlflow.data.context": "training", "x": "y"})
    (output,) = run.outputs.model_outputs
    logged = mlflow.get_logged_model(output.model_id)
    assert (logged.status.value, logged.source_run_id, [m.value for m in logged.metrics]) == ("READY", run_id, [0.9])
    assert [f.path for f in client.list_artifacts(run_id, "notes")] == ["notes/k.json"]
    assert mlflow.artifacts.load_dict(f"runs:/{run_id}/notes/k.json") == {"k": 1}
    for uri in (f"models:/{name}@champion", f"models:/{name}/1", f"models:/{output.model_id}", f"models:/{name}/latest"):
        assert len(mlflow.pyfunc.load_model(uri).predict(FEATURES)) == 40
    found = mlflow.search_runs(
        experiment_ids=[run.info.experiment_id], filter_string="metrics.accuracy > 0.5 and dataset.name = 'features'"
    )
    assert list(found["run_id"]) == [run_id]
    assert mlflow.search_logged_models(experiment_ids=[run.info.experiment_id], output_format="list")[0].model_id == output.model_id
    assert client.get_model_version_by_alias(name, "champion").run_id == run_id


def test_a_model_is_logged_registered_found_and_loaded(on_lake: str) -> None:
    mlflow.set_experiment("models")
    assert_all_is_there("wine", train_and_register("wine"))
    with pytest.raises(MlflowException, match="Run with id=nope not found"):
        MlflowClient().get_run("nope")


def test_autolog_of_a_grid_search_leaves_a_run_for_each_candidate(on_lake: str) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    mlflow.sklearn.autolog(max_tuning_runs=None, log_models=False, silent=True)
    try:
        with mlflow.start_run() as run:
            GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0, 10.0, 100.0]}, cv=2).fit(FEATURES, TARGET)
    finally:
        mlflow.sklearn.autolog(disable=True)
    children = mlflow.search_runs(filter_string=f"tags.`mlflow.parentRunId` = '{run.info.run_id}'", order_by=["params.C"])
    assert list(children["params.C"]) == ["0.1", "1.0", "10.0", "100.0"]
    assert children["metrics.mean_test_score"].notna().all() and set(children["status"]) == {"FINISHED"}
    assert MlflowClient().get_run(run.info.run_id).data.metrics["best_cv_score"] == children["metrics.mean_test_score"].max()


def test_prompts_are_registered_loaded_by_alias_and_no_models_to_those_who_do_not_ask(on_lake: str) -> None:
    prompts = getattr(mlflow, "genai", mlflow)
    for text in ("Hello {{name}}", "Good day, {{name}}"):
        version = prompts.register_prompt("greeting", text, commit_message="why", tags={"tone": "kind"})
    assert version.version == 2
    getattr(prompts, "set_prompt_alias", MlflowClient().set_prompt_alias)("greeting", "formal", 2)
    assert prompts.load_prompt("prompts:/greeting@formal").format(name="Ada") == "Good day, Ada"
    assert prompts.load_prompt("prompts:/greeting/1").template == "Hello {{name}}"
    assert MlflowClient().search_registered_models() == []
    with pytest.raises(MlflowException, match="already taken by a prompt"):
        MlflowClient().create_registered_model("greeting")


@pytest.mark.skipif(Version(mlflow.__version__) < Version("3.17"), reason="earlier exporters have no span logging to give up")
@pytest.mark.parametrize("behind_a_server", [False, True], ids=["lake", "mlflow server"])
def test_the_trace_exporter_gives_up_spans_at_the_first_refusal(behind_a_server: bool, on_lake: str, server: str) -> None:
    from mlflow.tracing.export.mlflow_v3 import MlflowV3SpanExporter

    with mlflow.start_span("asked") as span:
        span.set_inputs({"x": 1})
    exporter = MlflowV3SpanExporter(tracking_uri=server if behind_a_server else on_lake)
    assert exporter._store_supports_log_spans
    exporter._log_spans("0", [span])
    assert not exporter._store_supports_log_spans


def test_scorers_are_quiet_to_list_and_refused_to_register(on_lake: str) -> None:
    registry = pytest.importorskip("mlflow.genai.scorers.registry", reason="this MLflow has no registered scorers")
    if not hasattr(registry, "MlflowTrackingStore"):
        pytest.skip("this MLflow keeps registered scorers on Databricks only")
    store = scorer_store(on_lake)
    assert store.list_scorers("0") == []
    with pytest.raises(MlflowException, match="Registered scorers are not kept in a lake") as caught:
        store.register_scorer("0", mlflow.genai.scorer(lambda outputs: True, name="always"))
    assert caught.value.get_http_status_code() == 501


def test_artifacts_lie_below_the_lake_unless_the_experiment_says_otherwise(on_lake: str, tmp_path: Path) -> None:
    with mlflow.start_run() as run:
        mlflow.log_text("x", "a.txt")
    assert (tmp_path / "lake" / "artifacts" / "0" / run.info.run_id / "artifacts" / "a.txt").read_text() == "x"
    elsewhere = mlflow.create_experiment("elsewhere", str(tmp_path / "there"))
    with mlflow.start_run(experiment_id=elsewhere) as run:
        mlflow.log_text("y", "b.txt")
    assert (tmp_path / "there" / run.info.run_id / "artifacts" / "b.txt").read_text() == "y"


def test_mlflow_gc_empties_the_trash_with_its_artifacts(on_lake: str, tmp_path: Path) -> None:
    client = MlflowClient()
    with mlflow.start_run() as kept:
        mlflow.log_text("x", "a.txt")
    with mlflow.start_run() as gone:
        mlflow.log_text("x", "a.txt")
    model = client.create_logged_model("0", "m")
    client.delete_logged_model(model.model_id)
    client.delete_run(gone.info.run_id)
    experiment = client.create_experiment("doomed")
    client.create_run(experiment)
    client.delete_experiment(experiment)
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", on_lake]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": on_lake}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [r.info.run_id for r in client.search_runs(["0"], run_view_type=ViewType.ALL)] == [kept.info.run_id]
    assert client.get_experiment_by_name("doomed") is None
    artifacts = tmp_path / "lake" / "artifacts" / "0"
    assert (artifacts / kept.info.run_id).exists() and not (artifacts / gone.info.run_id / "artifacts" / "a.txt").exists()


# -- behind `mlflow server` -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an `mlflow server` on a new lake, artifacts proxied."""
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(f"delta://{folder / 'lake'}", folder, workers=2) as started:
        yield started.url


def call(url: str, path: str, body: Any = None, method: str | None = None) -> tuple[int, Any]:
    """Status and JSON of one request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def test_clients_work_over_http_with_proxied_artifacts(server: str) -> None:
    mlflow.set_tracking_uri(server)
    mlflow.set_experiment("over http")
    run_id = train_and_register("served")
    assert mlflow.get_run(run_id).info.artifact_uri.startswith("mlflow-artifacts:/")
    assert MlflowClient().get_experiment("0").artifact_location.startswith("mlflow-artifacts:/")
    assert_all_is_there("served", run_id)


def test_errors_over_http_have_the_codes_of_sql(server: str) -> None:
    api = "/api/2.0/mlflow"
    assert call(server, f"{api}/runs/get?run_id=nope")[0] == 404
    status, answer = call(server, f"{api}/runs/create", {})
    assert (status, answer["error_code"]) == (400, "BAD_REQUEST")
    assert call(server, f"{api}/experiments/create", {"name": "twice"})[0] == 200
    status, answer = call(server, f"{api}/experiments/create", {"name": "twice"})
    assert (status, answer["error_code"]) == (400, "RESOURCE_ALREADY_EXISTS")
    status, answer = call(server, f"{api}/runs/search", {"experiment_ids": ["0"], "filter": "foo.x = 1"})
    assert (status, answer["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


def test_metric_charts_get_their_points(server: str) -> None:
    client = MlflowClient(server)
    run = client.create_run("0")
    for step in range(30):
        client.log_metric(run.info.run_id, "loss", 1 / (step + 1), timestamp=step, step=step)
    query = f"run_ids={run.info.run_id}&metric_key=loss&max_results=10"
    status, answer = call(server, f"/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval?{query}")
    assert status == 200
    steps = [m["step"] for m in answer["metrics"]]
    assert (steps[0], steps[-1]) == (0, 29) and steps == sorted(steps) and 10 <= len(steps) <= 12
    status, answer = call(server, f"/ajax-api/2.0/mlflow/metrics/get-history-bulk?run_id={run.info.run_id}&metric_key=loss")
    assert status == 200 and len(answer["metrics"]) == 30


@pytest.mark.skipif(Version(mlflow.__version__) < Version("3.17"), reason="the query is the newest web UI's")
def test_a_run_with_an_infinite_metric_is_shown_by_the_web_uis_queries(server: str) -> None:
    client = MlflowClient(server)
    run_id = client.create_run("0").info.run_id
    values = {"up": math.inf, "down": -math.inf, "nan": math.nan, "plain": 1.0}
    client.log_batch(run_id, [Metric(key, value, 1, 1) for key, value in values.items()])
    query = (
        "query Q($data: MlflowGetRunInput!) { mlflowGetRun(input: $data) { apiError { message } run { data { metrics { key value } } } } }"
    )
    status, answer = call(server, "/graphql", {"query": query, "variables": {"data": {"runId": run_id}}})
    assert (status, answer.get("errors")) == (200, None), answer
    shown = {metric["key"]: metric["value"] for metric in answer["data"]["mlflowGetRun"]["run"]["data"]["metrics"]}
    assert shown == {"up": sys.float_info.max, "down": -sys.float_info.max, "nan": None, "plain": 1.0}
    for key in values:
        status, answer = call(
            server, f"/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval?run_ids={run_id}&metric_key={key}&max_results=10"
        )
        assert status == 200 and len(answer["metrics"]) == 1


LOCATION = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}
QUIET = {
    "traces": ("/ajax-api/3.0/mlflow/traces/search", {"locations": [LOCATION]}),
    "traces v2": ("/ajax-api/2.0/mlflow/traces?experiment_ids=0&max_results=1", None),
    "trace metrics": ("/ajax-api/3.0/mlflow/traces/metrics", {"experiment_ids": ["0"], "view_type": "TRACES", "metric_name": "trace_count",
                                                             "aggregations": [{"aggregation_type": "COUNT"}]}),
    "scorers": ("/ajax-api/3.0/mlflow/scorers/list?experiment_id=0", None),
    "datasets": ("/ajax-api/2.0/mlflow/experiments/search-datasets", {"experiment_ids": ["0"]}),
    "evaluation datasets": ("/ajax-api/3.0/mlflow/datasets/search", {"experiment_ids": ["0"]}),
    "logged models": ("/ajax-api/2.0/mlflow/logged-models/search", {"experiment_ids": ["0"]}),
    "webhooks": ("/ajax-api/2.0/mlflow/webhooks", None),
    "endpoints": ("/ajax-api/3.0/mlflow/gateway/endpoints/list", None),
    "secrets": ("/ajax-api/3.0/mlflow/gateway/secrets/list", None),
    "prompts": ("/ajax-api/2.0/mlflow/registered-models/search?filter=tags.%60mlflow.prompt.is_prompt%60%20%3D%20%27true%27", None),
    "models": ("/ajax-api/2.0/mlflow/registered-models/search?max_results=25&order_by=name%20ASC", None),
    "versions": ("/ajax-api/2.0/mlflow/model-versions/search?max_results=25", None),
    "experiments": ("/ajax-api/2.0/mlflow/experiments/search?max_results=25&order_by=last_update_time%20DESC", None),
    "runs": ("/ajax-api/2.0/mlflow/runs/search", {"experiment_ids": ["0"], "max_results": 25, "order_by": ["attributes.start_time DESC"],
                                                 "filter": "attributes.run_name ILIKE '%x%'", "run_view_type": "ACTIVE_ONLY"}),
    "server": ("/ajax-api/3.0/mlflow/server-info", None),
    "issues": ("/ajax-api/3.0/mlflow/issues/search", {"experiment_id": "0"}),
    "review queues": ("/ajax-api/3.0/mlflow/review-queues/list?experiment_id=0", None),
    "label schemas": ("/ajax-api/3.0/mlflow/label-schemas/list?experiment_id=0", None),
    "mcp servers": ("/ajax-api/3.0/mlflow/mcp-servers", None),
}  # fmt: skip


@pytest.mark.skipif(Version(mlflow.__version__) < Version("3.17"), reason="the routes are those of the newest MLflow")
@pytest.mark.parametrize("what", QUIET)
def test_what_the_web_ui_asks_for_is_answered_without_an_error(server: str, what: str) -> None:
    path, body = QUIET[what]
    status, answer = call(server, path, body)
    assert status == 200, answer


@pytest.mark.skipif(Version(mlflow.__version__) < Version("3.17"), reason="the routes are those of the newest MLflow")
def test_writes_of_what_a_lake_does_not_keep_are_501(server: str) -> None:
    info = {"trace_id": "tr-1", "trace_location": LOCATION, "request_time": "2026-01-01T00:00:00Z", "state": "OK"}
    trace = {"trace": {"trace_info": info}}
    status, answer = call(server, "/api/3.0/mlflow/traces", trace)
    assert status == 501 and "Traces and assessments are not kept in a lake" in answer["message"]
    status, answer = call(server, "/api/3.0/mlflow/scorers/register", {"experiment_id": "0", "name": "s", "serialized_scorer": "{}"})
    assert status == 501 and "MLflow server with an SQL backend" in answer["message"]
