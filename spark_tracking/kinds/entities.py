"""What the lake knows of a thing, as the MLflow entity that clients expect."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from mlflow import entities as ml
from mlflow.entities import model_registry as registry

from spark_tracking.kinds import catalog
from spark_tracking.kinds.shapes import DATASET, datasets_in_order
from spark_tracking.kinds.state import Entity

_GREATEST = sys.float_info.max


def metric_value(value: float) -> float:
    """A metric's value as MLflow's SQL store gives it: ±inf is the greatest number of its sign, which JSON and GraphQL can say."""
    return max(min(value, _GREATEST), -_GREATEST)  # in this order NaN stays what it is


def experiment(state: Entity) -> ml.Experiment:
    """An `mlflow.entities.Experiment`."""
    return ml.Experiment(**catalog.EXPERIMENT.facts(state), tags=[ml.ExperimentTag(k, v) for k, v in state.items("tag").items()])


def run_info(state: Entity) -> ml.RunInfo:
    """An `mlflow.entities.RunInfo`."""
    return ml.RunInfo(**catalog.RUN.facts(state))


def run(state: Entity) -> ml.Run:
    """An `mlflow.entities.Run` with its data, inputs and outputs."""
    data = ml.RunData(
        metrics=[ml.Metric(name, metric_value(m.latest.value), m.latest.time, m.latest.step) for name, m in state.metrics.items()],
        params=[ml.Param(k, v) for k, v in state.items("param").items()],
        tags=[ml.RunTag(k, v) for k, v in state.items("tag").items()],
    )
    inputs = ml.RunInputs(
        dataset_inputs=[
            ml.DatasetInput(ml.Dataset(**{name: one[name] for name in DATASET}), [ml.InputTag(k, v) for k, v in one["tags"].items()])
            for one in datasets_in_order(state)
        ],
        model_inputs=[ml.LoggedModelInput(model_id) for model_id in state.items("model_input")],
    )
    outputs = [ml.LoggedModelOutput(model_id, int(step)) for model_id, step in state.items("model_output").items()]
    return ml.Run(run_info(state), data, inputs, ml.RunOutputs(outputs))


def logged_model(state: Entity) -> ml.LoggedModel:
    """An `mlflow.entities.LoggedModel` with its metrics."""
    facts = catalog.LOGGED_MODEL.facts(state)
    points = sorted(state.points.items(), key=lambda item: (item[0].name, item[0].time, item[0].step, item[0].run_id))
    metrics = [
        ml.Metric(p.name, metric_value(value), p.time, p.step, state.id, p.dataset_name, p.dataset_digest, run_id=p.run_id)
        for p, value in points
    ]
    return ml.LoggedModel(
        **facts | {"status": ml.LoggedModelStatus(facts["status"])},
        tags=state.items("tag") or None,
        params=state.items("param") or None,
        metrics=metrics or None,
    )


def model_version(state: Entity, aliases: Mapping[str, str]) -> registry.ModelVersion:
    """An `mlflow.entities.model_registry.ModelVersion`, with those of its registered model's aliases that name it."""
    facts = catalog.MODEL_VERSION.facts(state)
    return registry.ModelVersion(
        **facts,
        tags=[registry.ModelVersionTag(k, v) for k, v in state.items("tag").items()],
        aliases=[alias for alias, number in aliases.items() if int(number) == facts["version"]],
    )


def registered_model(state: Entity, latest_versions: list[registry.ModelVersion]) -> registry.RegisteredModel:
    """An `mlflow.entities.model_registry.RegisteredModel`, with the latest version of each stage."""
    return registry.RegisteredModel(
        **catalog.REGISTERED_MODEL.facts(state),
        latest_versions=latest_versions,
        tags=[registry.RegisteredModelTag(k, v) for k, v in state.items("tag").items()],
        aliases=[registry.RegisteredModelAlias(alias, int(version)) for alias, version in state.items("alias").items()],
    )
