"""What is missing or misplaced in a call is refused where MLflow's SQL store refuses it, and never takes anything away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlflow
import pytest
from mlflow.entities import LoggedModelInput, LoggedModelOutput, LoggedModelParameter, LoggedModelTag, Metric, Param, RunTag
from mlflow.entities.model_registry import RegisteredModelTag
from mlflow.exceptions import MlflowException
from packaging.version import Version

from spark_tracking.store.registry import LakeRegistryStore
from spark_tracking.store.tracking import LakeTrackingStore

NOTHING: Any = None
Script = Callable[[Any], None]
newest = pytest.mark.skipif(Version(mlflow.__version__) < Version("3.17"), reason="the oracle is the newest MLflow's SQL store")


def refusals(store: Any, run_id: str, model_id: str) -> list[Callable[[], Any]]:
    """Calls with a None where a text belongs."""
    return [
        lambda: store.log_param(run_id, Param("p", NOTHING)),
        lambda: store.log_batch(run_id, [Metric("m", 1.0, 1, 1)], [Param("kept", "1"), Param("p", NOTHING)], [RunTag("t", "1")]),
        lambda: store.create_logged_model("0", params=[LoggedModelParameter("p", NOTHING)]),
        lambda: store.create_logged_model("0", tags=[LoggedModelTag("t", NOTHING)]),
        lambda: store.log_logged_model_params(model_id, [LoggedModelParameter("p", NOTHING)]),
        lambda: store.set_logged_model_tags(model_id, [LoggedModelTag("t", NOTHING)]),
    ]


def test_params_and_tags_of_models_without_a_value_are_refused_in_the_words_of_sql(lake: Any, oracle: Any) -> None:
    messages = []
    for store in (oracle.tracking, lake.tracking):
        run_id = store.create_run("0", "u", 1, [], "run").info.run_id
        model_id = store.create_logged_model("0").model_id
        mine = []
        for call in refusals(store, run_id, model_id):
            with pytest.raises(MlflowException) as caught:
                call()
            start = caught.value.message.index("NOT NULL")
            mine.append((caught.value.error_code, caught.value.message[start:].split(".")[:2]))
        messages.append([(code, [words[0], words[1].split()[0]]) for code, words in mine])
        run, models = store.get_run(run_id), store.search_logged_models(["0"])
        assert (run.data.params, run.data.metrics, set(run.data.tags)) == ({}, {}, {"mlflow.runName"})
        assert [(m.model_id, m.params, m.tags) for m in models] == [(model_id, {}, {})]
    oracle.tracking._dispose_engine()
    assert messages[1] == messages[0]


def test_a_param_that_has_a_value_is_not_unset_by_none(store: LakeTrackingStore) -> None:
    run_id = store.create_run("0", "u", 1, [], "run").info.run_id
    store.log_param(run_id, Param("p", "1"))
    for call in (lambda: store.log_param(run_id, Param("p", NOTHING)), lambda: store.log_batch(run_id, [], [Param("p", NOTHING)], [])):
        with pytest.raises(MlflowException, match="Changing param values is not allowed"):
            call()
    assert store.get_run(run_id).data.params == {"p": "1"}


def test_a_tag_set_to_none_is_empty_and_not_deleted(store: LakeTrackingStore, registry: LakeRegistryStore) -> None:
    run_id = store.create_run("0", "u", 1, [RunTag("at start", NOTHING)], "run").info.run_id
    store.set_tag(run_id, RunTag("t", "1"))
    store.set_tag(run_id, RunTag("t", NOTHING))
    tags = store.get_run(run_id).data.tags
    assert (tags["at start"], tags["t"]) == ("", "")
    registry.create_registered_model("m", [RegisteredModelTag("t", NOTHING)])
    assert registry.get_registered_model("m").tags == {"t": ""}


@newest
def test_versions_are_not_ordered_by_tags_nor_made_from_half_a_uri(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        s.create_registered_model("m")
        s.create_model_version("m", "file:///x")
        s.search_model_versions(order_by=["tags.x"])
        s.search_model_versions(order_by=["name", "params.x"])
        s.create_model_version("m", "models:/m/1/2")
        s.create_model_version("m", "models:/")

    on_both(script)


def test_what_is_no_text_is_refused_before_it_reaches_a_journal_that_could_never_be_flushed(store: LakeTrackingStore) -> None:
    run_id = store.create_run("0", "u", 1, [], "run").info.run_id
    model_id = store.create_logged_model("0").model_id
    number: Any = 5
    for call in (
        lambda: store.create_run("0", "u", 1, [RunTag(number, "v")], "run"),
        lambda: store.log_inputs(run_id, models=[LoggedModelInput(number)]),
        lambda: store.log_inputs(run_id, models=[LoggedModelInput(NOTHING)]),
        lambda: store.log_outputs(run_id, [LoggedModelOutput("m-1", "x")]),
        lambda: store.log_metric(run_id, Metric("m", 1.0, 1, 1, model_id=number)),
        lambda: store.set_logged_model_tags(model_id, [LoggedModelTag(NOTHING, "v")]),
        lambda: store.log_logged_model_params(model_id, [LoggedModelParameter(number, "v")]),
        lambda: store.create_logged_model("0", params=[LoggedModelParameter(NOTHING, "v")]),
    ):
        with pytest.raises((MlflowException, TypeError, ValueError)):
            call()
    store.update_run_info(run_id, None, None, number)
    store.lake.settle()
    run, model = store.get_run(run_id), store.get_logged_model(model_id)
    assert (run.info.run_name, run.data.metrics, run.inputs.model_inputs, run.outputs.model_outputs) == ("5", {}, [], [])
    assert (model.tags, model.params) == ({}, {})


def test_a_metric_without_a_name_has_no_history(store: LakeTrackingStore) -> None:
    run_id = store.create_run("0", "u", 1, [], "run").info.run_id
    store.log_metric(run_id, Metric("m", 1.0, 1, 1))
    assert store.get_metric_history(run_id, NOTHING) == []


def test_a_filter_on_models_with_a_number_that_is_none_is_invalid(store: LakeTrackingStore) -> None:
    with pytest.raises(MlflowException, match="Invalid filter string") as caught:
        store.search_logged_models(["0"], "metrics.acc > 'high'")
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
