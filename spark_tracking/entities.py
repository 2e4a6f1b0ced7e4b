"""What the lake knows of a thing, as the MLflow entity that clients expect; and MLflow's inputs as the lake's registers.

Pure functions. The state they read is `spark_tracking.lake.state.Entity`; this layer lies below the lake, so it is
described here by what is used of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    ExperimentTag,
    InputTag,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunInputs,
    RunOutputs,
    RunTag,
)
from mlflow.entities.model_registry import (
    ModelVersion,
    ModelVersionTag,
    RegisteredModel,
    RegisteredModelAlias,
    RegisteredModelTag,
)


class State(Protocol):
    """A thing's folded state: see `lake.state.Entity`. What an attribute holds is what MLflow's classes take for it."""

    @property
    def id(self) -> str: ...
    @property
    def metrics(self) -> Mapping[str, Any]: ...
    @property
    def points(self) -> Mapping[Any, float]: ...
    def attr(self, key: str) -> Any: ...
    def number(self, key: str) -> Any: ...
    def items(self, name: str) -> dict[str, str]: ...


_GREATEST = sys.float_info.max


def metric_value(value: float) -> float:
    """A metric's value as MLflow's SQL store gives it: ±inf is the greatest number of its sign, which JSON and GraphQL can say."""
    return max(min(value, _GREATEST), -_GREATEST)  # in this order NaN stays what it is


def experiment(state: State) -> Experiment:
    """An `mlflow.entities.Experiment`."""
    return Experiment(
        experiment_id=state.id,
        name=state.attr("name"),
        artifact_location=state.attr("artifact_location"),
        lifecycle_stage=state.attr("lifecycle_stage"),
        tags=[ExperimentTag(k, v) for k, v in state.items("tag").items()],
        creation_time=state.number("created"),
        last_update_time=state.number("updated"),
    )


def run_info(state: State) -> RunInfo:
    """An `mlflow.entities.RunInfo`."""
    return RunInfo(
        run_id=state.id,
        run_name=state.attr("run_name"),
        experiment_id=state.attr("experiment_id"),
        user_id=state.attr("created_by"),
        status=state.attr("status"),
        start_time=state.number("start_time"),
        end_time=state.number("end_time"),
        lifecycle_stage=state.attr("lifecycle_stage"),
        artifact_uri=state.attr("artifact_uri"),
    )


def run(state: State) -> Run:
    """An `mlflow.entities.Run` with its data, inputs and outputs."""
    data = RunData(
        metrics=[Metric(name, metric_value(m.latest.value), m.latest.time, m.latest.step) for name, m in state.metrics.items()],
        params=[Param(k, v) for k, v in state.items("param").items()],
        tags=[RunTag(k, v) for k, v in state.items("tag").items()],
    )
    inputs = RunInputs(
        dataset_inputs=_in_order(state.items("dataset").values()),
        model_inputs=[LoggedModelInput(model_id) for model_id in state.items("model_input")],
    )
    outputs = [LoggedModelOutput(model_id, int(step)) for model_id, step in state.items("model_output").items()]
    return Run(run_info(state), data, inputs, RunOutputs(outputs))


_DATASET = ("name", "digest", "source_type", "source", "schema", "profile")


def dataset_register(dataset: Dataset, tags: Iterable[InputTag] = (), order: int = 0) -> tuple[str, str]:
    """The key and the value of a dataset's register, as the column `datasets` of `runs_latest` reads it.

    Args:
        order: how many datasets the run had logged before.
    """
    value = {**{name: getattr(dataset, name) for name in _DATASET}, "tags": {tag.key: tag.value for tag in tags}, "order": order}
    return f"{dataset.digest}/{dataset.name}", json.dumps(value)


def dataset_input(text: str) -> DatasetInput:
    """The inverse of `dataset_register`, from its value."""
    fields = json.loads(text)
    tags = [InputTag(k, v) for k, v in fields["tags"].items()]
    return DatasetInput(dataset=Dataset(**{name: fields[name] for name in _DATASET}), tags=tags)


def _in_order(texts: Iterable[str]) -> list[DatasetInput]:
    """The inputs as they were logged; those of lakes that did not note it yet by their keys."""
    return [dataset_input(text) for text in sorted(texts, key=lambda text: json.loads(text).get("order", 0))]


def logged_model(state: State) -> LoggedModel:
    """An `mlflow.entities.LoggedModel` with its metrics."""
    return LoggedModel(
        experiment_id=state.attr("experiment_id"),
        model_id=state.id,
        name=state.attr("name"),
        artifact_location=state.attr("artifact_uri"),
        creation_timestamp=state.number("created"),
        last_updated_timestamp=state.number("updated"),
        model_type=state.attr("model_type"),
        source_run_id=state.attr("source_run_id"),
        status=LoggedModelStatus(state.attr("status")),
        status_message=state.attr("status_message"),
        tags=state.items("tag") or None,
        params=state.items("param") or None,
        metrics=[_model_metric(state.id, p, state.points[p]) for p in sorted(state.points, key=_point_order)] or None,
    )


def _point_order(point: Any) -> tuple[str, int, int, str]:
    return point.name, point.time, point.step, point.run_id


def _model_metric(model_id: str, point: Any, value: float) -> Metric:
    return Metric(
        key=point.name,
        value=metric_value(value),
        timestamp=point.time,
        step=point.step,
        model_id=model_id,
        run_id=point.run_id,
        dataset_name=point.dataset_name,
        dataset_digest=point.dataset_digest,
    )


def model_version(state: State, aliases: Mapping[str, str]) -> ModelVersion:
    """An `mlflow.entities.model_registry.ModelVersion`.

    Args:
        aliases: those of its registered model, alias to version.
    """
    name, version = split_version_id(state.id)
    return ModelVersion(
        name=name,
        version=cast("str", version),  # MLflow's annotation; its SQL store gives whole numbers
        creation_timestamp=state.number("created"),
        last_updated_timestamp=state.number("updated"),
        description=state.attr("description"),
        user_id=state.attr("created_by"),
        current_stage=state.attr("current_stage"),
        source=state.attr("source"),
        run_id=state.attr("run_id"),
        status=state.attr("status"),
        status_message=state.attr("status_message"),
        tags=[ModelVersionTag(k, v) for k, v in state.items("tag").items()],
        run_link=state.attr("run_link"),
        aliases=[alias for alias, number in aliases.items() if int(number) == version],
        model_id=state.attr("model_id"),
    )


def registered_model(state: State, latest_versions: list[ModelVersion]) -> RegisteredModel:
    """An `mlflow.entities.model_registry.RegisteredModel`.

    Args:
        latest_versions: the latest one of each stage.
    """
    return RegisteredModel(
        name=state.id,
        creation_timestamp=state.number("created"),
        last_updated_timestamp=state.number("updated"),
        description=state.attr("description"),
        latest_versions=latest_versions,
        tags=[RegisteredModelTag(k, v) for k, v in state.items("tag").items()],
        aliases=[RegisteredModelAlias(alias, int(version)) for alias, version in state.items("alias").items()],
    )


def version_id(name: str, version: int | str) -> str:
    """The id of a model version in the lake."""
    return f"{name}/{version}"


def split_version_id(id: str) -> tuple[str, int]:
    """The inverse of `version_id`."""
    name, _, version = id.rpartition("/")
    return name, int(version)
