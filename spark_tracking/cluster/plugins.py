"""MLflow's plug-ins on a cluster: which experiment a process logs to that names none, and what a run is tagged with.

MLflow's own order stays: code, `MLFLOW_EXPERIMENT_NAME`, `MLFLOW_EXPERIMENT_ID`, then providers. MLflow loads this module while it
is itself imported, so everything else of it is imported later.
"""

from __future__ import annotations

import os
import string
import sys
import warnings
from typing import TYPE_CHECKING

from mlflow.tracking.context.abstract_context import RunContextProvider
from mlflow.tracking.default_experiment.abstract_context import DefaultExperimentProvider

from spark_tracking import config
from spark_tracking.cluster import place
from spark_tracking.destination import Destination, check_experiment, map_experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ids: dict[tuple[str, str], str] = {}
_warned: set[str] = set()


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
        warn_of_problem()
        return experiment_name() is not None

    def get_experiment_id(self) -> str:
        import mlflow

        name = experiment_name()
        assert name is not None  # in_context has just said so
        key = (mlflow.get_tracking_uri(), name)
        if key not in _ids:
            _ids[key] = get_or_create(mlflow.MlflowClient(), name)
        return _ids[key]


class SourceTags(RunContextProvider):
    """Tags a run with the cluster, job and notebook that it came from. Entry point `mlflow.run_context_provider`.

    `spark_tracking.cluster`, `spark_tracking.job`, `spark_tracking.notebook`; inside a Spark task `spark_tracking.task`.
    """

    def in_context(self) -> bool:
        warn_of_problem()
        return "pyspark" in sys.modules or bool(config.CONFIGURED.get()) or "DATABRICKS_RUNTIME_VERSION" in os.environ

    def tags(self) -> dict[str, str]:
        found = {"cluster": place.cluster(), "job": place.job(), "notebook": place.notebook()}
        task = place.task()
        if task is not None:
            found["task"] = f"stage {task.stageId()}, partition {task.partitionId()}, attempt {task.attemptNumber()}"
        return {f"spark_tracking.{name}": value for name, value in found.items() if value}


def experiment_name() -> str | None:
    """The experiment for this process at the current tracking server, or None where MLflow's own choice stays.

    Raises:
        InvalidSetting: the setting's text is wrong (a start has checked it; a notebook may have changed it).
    """
    import mlflow

    from spark_tracking.errors import SparkTrackingError

    try:
        kind = Destination.parse(mlflow.get_tracking_uri()).kind
    except SparkTrackingError:
        kind = "server"  # a database or the like, in a test or on a laptop: its names are as free
    template = config.EXPERIMENT.get()
    if template:
        check_experiment(template, kind)
        return _fill(template, kind)
    if kind == "databricks" or not (config.CONFIGURED.get() or "DATABRICKS_RUNTIME_VERSION" in os.environ):
        return None
    own = place.notebook() or place.job()
    return map_experiment(own, kind, place.user()) if own else None


def get_or_create(client: MlflowClient, name: str) -> str:
    """The id of an experiment, created if it is missing; fifty at once end with one.

    Raises:
        InvalidState: the experiment is in the trash.
        MlflowException: the server cannot be reached or refuses.
    """
    from mlflow.exceptions import MlflowException

    from spark_tracking.errors import InvalidState

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another came first; if it was anything else, there is still none
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise InvalidState(f"The experiment '{name}' is in the trash. Restore it, purge it, or set another {config.EXPERIMENT.name}.")
    return str(found.experiment_id)


def warn_of_problem() -> None:
    """Warn once in a process that the cluster's start left tracking as it was, and why."""
    if problem := config.PROBLEM.get():
        _warn(f"spark-tracking did not set up this cluster: {problem} Runs go to {_current_uri()}. See `spark-tracking doctor`.")


def _fill(template: str, kind: str) -> str | None:
    fields = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    values = {field: getattr(place, field)() for field in fields}
    if "notebook" in fields and values["notebook"] is None:
        values["notebook"] = place.job()
    if missing := sorted(field for field, value in values.items() if not value):
        _warn(
            f"{config.EXPERIMENT.name}='{template}' names {{{missing[0]}}}, which is not known in this process. "
            "MLflow's default experiment is used; in a Spark task, spark_tracking.executor_run takes the driver's."
        )
        return None
    return map_experiment(template.format(**values), kind, place.user())


def _current_uri() -> str:
    import mlflow

    from spark_tracking.uri import redact

    return redact(mlflow.get_tracking_uri())


def _warn(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=2)
