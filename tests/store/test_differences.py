"""Where the lake differs from MLflow's SQL store, on purpose; each with its reason."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.entities import LoggedModelInput, LoggedModelStatus, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from spark_tracking import read
from spark_tracking.store.registry import LakeRegistryStore
from spark_tracking.store.tracking import LakeTrackingStore

GREATEST = sys.float_info.max
TEXTS = st.one_of(st.text(max_size=40), st.sampled_from(["", "it's", '"', "\\", "\x00", "🚀" * 50, "x" * 5000]))
KEYS = st.text("abcXYZ059_-. /:", min_size=1, max_size=30).filter(
    lambda k: k.strip() and "//" not in k and not set(k.split("/")) & {"", ".", ".."}
)


def test_infinite_values_are_handed_out_as_sqls_and_searched_and_kept_as_they_are(store: LakeTrackingStore) -> None:
    run_id = store.create_run("0", "u", 1, [], None).info.run_id
    store.log_batch(run_id, [Metric("up", math.inf, 1, 1), Metric("down", -math.inf, 1, 1)], [], [])
    assert store.get_run(run_id).data.metrics == {"up": GREATEST, "down": -GREATEST}
    assert len(store.search_runs(["0"], "metrics.up > 1e308 AND metrics.down < -1e308", ViewType.ALL)) == 1
    store.lake.refresh()
    for uri in (f"{store.lake.uri}", f"{store.lake.uri.root}"):
        points = read("run_metrics_history", tracking_uri=uri).read_all().to_pydict()
        assert dict(zip(points["metric_name"], points["metric_value"])) == {"up": math.inf, "down": -math.inf}


def test_the_experiment_of_mlflows_own_demo_is_refused_since_its_traces_would_be_missing(store: LakeTrackingStore) -> None:
    with pytest.raises(MlflowException, match=r"'MLflow Demo' is .* made of traces") as caught:
        store.create_experiment("MLflow Demo")
    assert caught.value.get_http_status_code() == 501
    assert [e.name for e in store.search_experiments()] == ["Default"]


def test_nan_of_a_logged_model_is_kept_where_sql_makes_it_zero(store: LakeTrackingStore) -> None:
    run_id = store.create_run("0", "u", 1, [], None).info.run_id
    model_id = store.create_logged_model("0").model_id
    store.log_metric(run_id, Metric("m", math.nan, 1, 1, model_id=model_id))
    assert math.isnan(store.get_logged_model(model_id).metrics[0].value)
    found = {text: len(store.search_logged_models(["0"], f"metrics.m {text}")) for text in ("> 0", "<= 0", "= 0", "!= 0")}
    assert found == {"> 0": 0, "<= 0": 0, "= 0": 0, "!= 0": 1}


def test_a_status_of_logged_models_is_searched_by_its_name_where_sql_wants_a_number(store: LakeTrackingStore) -> None:
    model_id = store.create_logged_model("0").model_id
    store.finalize_logged_model(model_id, LoggedModelStatus.READY)
    store.create_logged_model("0")
    assert [m.model_id for m in store.search_logged_models(["0"], "status = 'READY'")] == [model_id]


def test_a_batch_that_is_refused_leaves_nothing_where_sql_may_keep_a_part(store: LakeTrackingStore) -> None:
    run_id = store.create_run("0", "u", 1, [], None).info.run_id
    store.log_param(run_id, Param("p", "1"))
    with pytest.raises(MlflowException, match="Changing param values"):
        store.log_batch(run_id, [Metric("m", 1.0, 1, 1)], [Param("new", "1"), Param("p", "2")], [RunTag("t", "1")])
    data = store.get_run(run_id).data
    assert data.metrics == {} and data.params == {"p": "1"} and "t" not in data.tags


def test_searched_runs_have_their_input_models_where_sql_leaves_them_out(store: LakeTrackingStore) -> None:
    run_id = store.create_run("0", "u", 1, [], None).info.run_id
    store.log_inputs(run_id, models=[LoggedModelInput("m-1")])
    assert [m.model_id for m in store.search_runs(["0"], "", ViewType.ALL)[0].inputs.model_inputs] == ["m-1"]


def test_a_version_knows_its_logged_model_where_sql_forgets_it(store: LakeTrackingStore, registry: LakeRegistryStore) -> None:
    run_id = store.create_run("0", "u", 1, [], None).info.run_id
    model_id = store.create_logged_model("0", source_run_id=run_id).model_id
    registry.create_registered_model("m")
    version = registry.create_model_version("m", f"models:/{model_id}", model_id=model_id)
    assert (version.model_id, version.run_id) == (model_id, run_id)
    assert registry.get_model_version_download_uri("m", 1) == f"file:///artifacts/0/models/{model_id}/artifacts"


def test_a_taken_name_of_an_experiment_is_said_to_exist_where_sql_shows_its_statement(store: LakeTrackingStore) -> None:
    store.create_experiment("taken")
    id = store.create_experiment("other")
    with pytest.raises(MlflowException, match=r"^Experiment\(name=taken\) already exists\.$"):
        store.rename_experiment(id, "taken")


def test_a_time_that_no_reader_of_the_tables_could_show_is_refused(store: LakeTrackingStore) -> None:
    run_id = store.create_run("0", "u", 1, [], None).info.run_id
    nanoseconds = 1_700_000_000_000_000_000
    with pytest.raises(MlflowException, match="expected milliseconds"):
        store.log_metric(run_id, Metric("m", 1.0, nanoseconds, 1))
    with pytest.raises(MlflowException, match="expected milliseconds"):
        store.update_run_info(run_id, None, nanoseconds, None)
    with pytest.raises(MlflowException, match="64 bits"):
        store.log_metric(run_id, Metric("m", 1.0, 1, 2**63))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> LakeTrackingStore:
    folder: Path = tmp_path_factory.mktemp("round-trips")
    return LakeTrackingStore(f"delta://{folder}", "file:///artifacts")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(key=KEYS, text=TEXTS.map(lambda t: t.encode("utf-8", "ignore").decode()), value=st.floats(width=64))
def test_what_goes_in_comes_out(shared: LakeTrackingStore, key: str, text: str, value: float) -> None:
    run_id = shared.create_run("0", text, 1, [RunTag("at start", text)], text or None).info.run_id
    shared.log_batch(run_id, [Metric(key, value, 5, -3)], [Param(key, text)], [RunTag(key, text)])
    run, (point,) = shared.get_run(run_id), shared.get_metric_history(run_id, key)
    assert run.data.params == {key: text}
    assert (run.data.tags[key], run.data.tags["at start"], run.info.user_id) == (text, text, text)
    assert repr(run.data.metrics[key]) == repr(point.value) == repr(math.copysign(GREATEST, value) if math.isinf(value) else value)
    assert (point.timestamp, point.step) == (5, -3)
