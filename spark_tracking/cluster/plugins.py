"""MLflow's plug-ins on a cluster: which experiment a process logs to that names none, and what a run is tagged with.

MLflow's own order stays: code, `MLFLOW_EXPERIMENT_NAME`, `MLFLOW_EXPERIMENT_ID`, then providers. Only MLflow imports this module, while
it is itself imported: so it must not import `spark_tracking.errors`, whose own import may be what set MLflow's going.
"""

from __future__ import annotations

import os
import sys

from mlflow.tracking.context.abstract_context import RunContextProvider
from mlflow.tracking.default_experiment.abstract_context import DefaultExperimentProvider

from spark_tracking import config, here
from spark_tracking.cluster import experiments, place
from spark_tracking.cluster.unattended import never_prompt

if config.CONFIGURED.get() and os.environ.get("MLFLOW_TRACKING_URI", "").startswith("azureml:"):
    never_prompt()  # before MLflow makes its first client of that server

_ids: dict[tuple[str, str], str] = {}


class ExperimentProvider(DefaultExperimentProvider):
    """`SPARK_TRACKING_EXPERIMENT` with its fields filled; without it, on a server that is not Databricks, the notebook's or job's own.

    Entry point `mlflow.default_experiment_provider`. The experiment is created when it is missing, once, however many start together.
    """

    def __init__(self) -> None:
        # MLflow asks its own provider for Databricks notebooks first. On a server of another kind that one creates an experiment
        # at the first start and fails with 'already exists' at every later one, so ours has to come before it.
        registry = sys.modules.get("mlflow.tracking.default_experiment.registry")
        providers = getattr(getattr(registry, "_default_experiment_provider_registry", None), "_registry", None)
        if isinstance(providers, list):
            providers.insert(0, self)

    def in_context(self) -> bool:
        experiments.warn_of_problem()
        return experiments.experiment_name() is not None

    def get_experiment_id(self) -> str:
        import mlflow

        name = experiments.experiment_name()
        assert name is not None  # in_context has just said so
        key = (mlflow.get_tracking_uri(), name)
        if key not in _ids:
            _ids[key] = experiments.get_or_create(mlflow.MlflowClient(), name)
        return _ids[key]


class SourceTags(RunContextProvider):
    """Tags a run of a cluster that a start, or `use`, has set up with what MLflow's own tags do not say of where it came from.

    `spark_tracking.cluster` and `spark_tracking.job`: the Spark master and the application's name; inside a Spark task
    `spark_tracking.task`. On Databricks MLflow names cluster, job and notebook itself, and elsewhere script and notebook. Entry point
    `mlflow.run_context_provider`, which is asked in every process of every machine where this package is installed: elsewhere it is silent,
    unless SPARK_TRACKING_TAGS asks for them.
    """

    def in_context(self) -> bool:
        experiments.warn_of_problem()
        here.warn_where_spark_reads_another()
        wanted = config.TAGS.get()
        return bool(config.CONFIGURED.get()) if wanted is None else wanted

    def tags(self) -> dict[str, str]:
        found = {"task": place.task_name()}
        if "DATABRICKS_RUNTIME_VERSION" not in os.environ:
            found |= {"cluster": place.cluster(), "job": place.application()}
        return {f"spark_tracking.{name}": value for name, value in found.items() if value}
