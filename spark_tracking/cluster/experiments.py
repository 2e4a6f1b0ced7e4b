"""The experiment of a process that names none: filled at run time, mapped to the server's names, created once."""

from __future__ import annotations

import os
import string
from typing import TYPE_CHECKING

from spark_tracking import config, here
from spark_tracking.address import Address
from spark_tracking.cluster import place
from spark_tracking.cluster.settings import check_experiment, map_experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient


def experiment_name() -> str | None:
    """The experiment for this process at the current tracking server, or None where MLflow's own choice stays.

    InvalidSetting where the setting's text is wrong: a start has checked it, but a notebook may have changed it.
    """
    import mlflow

    kind = Address.of(mlflow.get_tracking_uri()).kind
    template = config.EXPERIMENT.get()
    if template:
        check_experiment(template, kind)
        return _fill(template, kind)
    if kind == "databricks" or not (config.CONFIGURED.get() or "DATABRICKS_RUNTIME_VERSION" in os.environ):
        return None
    own = place.notebook() or place.job()
    return map_experiment(own, kind, place.user()) if own else None


def get_or_create(client: MlflowClient, name: str) -> str:
    """The id of an experiment, created if it is missing; fifty at once end with one. InvalidState where it is in the trash."""
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
    import mlflow

    if problem := config.PROBLEM.get():
        uri = mlflow.get_tracking_uri()
        here.warn_once(f"spark-tracking did not set up this cluster: {problem} Runs go to {uri}. See `spark-tracking doctor`.")


def _fill(template: str, kind: str) -> str | None:
    fields = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    values = {field: getattr(place, field)() for field in fields}
    if "notebook" in fields and values["notebook"] is None:
        values["notebook"] = place.job()
    if missing := sorted(field for field, value in values.items() if not value):
        here.warn_once(
            f"{config.EXPERIMENT.name}='{template}' names {{{missing[0]}}}, which is not known in this process. "
            "MLflow's default experiment is used; in a Spark task, spark_tracking.executor_run takes the driver's."
        )
        return None
    return map_experiment(template.format(**values), kind, place.user())
