"""The first cell of a notebook or job where no cluster start could set anything: serverless, a Connect client, a laptop."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlflow
from mlflow.tracking._tracking_service import utils as tracking

from spark_tracking import config, here
from spark_tracking.address import Address
from spark_tracking.cluster import environment, experiments
from spark_tracking.cluster.settings import check_experiment
from spark_tracking.readers import open_reader
from spark_tracking.readers.query import Query
from spark_tracking.sources.defaults import Defaults
from spark_tracking.sources.register import register

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_PLACES = (config.URI, config.AZURE_SUBSCRIPTION, config.AZURE_RESOURCE_GROUP, config.AZURE_WORKSPACE, config.AZURE_CONFIG)


@dataclass(frozen=True)
class Used:
    """What Spark reads from now on; shown as one line.

    Attributes:
        server: the tracking URI, masked.
        experiment_id: what `load()` reads; None where none was active.
        experiment: its name.
    """

    server: str
    experiment_id: str | None
    experiment: str | None

    def __repr__(self) -> str:
        if self.experiment_id is None:
            return f'Spark reads {self.server}. No experiment is active, so name one: load("<id>").'
        return f"Spark reads {self.server}, experiment '{self.experiment}' ({self.experiment_id})."


def use(
    spark: SparkSession,
    tracking_uri: str | None = None,
    experiment_id: str | int | None = None,
    *,
    experiment: str | None = None,
    registry_uri: str | None = None,
) -> Used:
    """Track this process to one server, and let `spark` read it: what a cluster's start does, from the first cell.

    With `tracking_uri`, `experiment` or `registry_uri`, or with `SPARK_TRACKING_*` in the environment where nothing was set
    yet, it sets what the init script sets, by the same rules. In any case it registers `mlflow` and `mlflow-experiment` on the
    session: Spark's own processes do not see what `mlflow.set_tracking_uri`, `mlflow.set_experiment` or `os.environ` say
    here, so call it again after a change. Credentials travel beside the plan, never in it. Tasks log through `executor_run`.

    Args:
        spark: a session, classic or Spark Connect.
        tracking_uri: the server that this process tracks to from here on; default what it tracks to already, or the settings'. May
            be a database's, password included. (To read another server once, use the option `tracking_uri`.)
        experiment_id: what `format("mlflow-experiment").load()` reads; default the active experiment.
        experiment: the experiment of runs that name none, made where it is missing; may hold `{user}`, `{job}`, `{notebook}`, `{cluster}`.
        registry_uri: the model registry, where it is not the tracking server.

    Returns:
        Server and experiment that Spark reads now; in a notebook's last line it says so.

    Raises:
        InvalidSetting, InvalidUri: an argument or a setting is wrong; then nothing is set.
        InvalidInput: no tracking server was named here either.
        InvalidState: Spark's workers run a Python without this package.
        NotFound, PermissionRefused, Unavailable, LakeFormatError: there is none at the URI.

    Example:
        >>> use(spark, "delta+s3://bucket/lake", experiment="team/{user}")       # doctest: +SKIP
        >>> spark.read.format("mlflow-experiment").load().orderBy("start_time").show()
    """
    unset = tracking._tracking_uri is None and not config.CONFIGURED.get()
    if tracking_uri or experiment or registry_uri or (unset and any(place.get() for place in _PLACES)):
        before = tracking.get_tracking_uri()
        _set_up(tracking_uri, experiment, registry_uri)
        if experiment or Address.of(before).absolute != tracking.get_tracking_uri():
            here.forget_experiment()
    address = Address.of(Address.of(tracking_uri or here.active_tracking_uri()).absolute)
    uri = address.uri
    if experiment_id is None:
        experiment_id = _provided_experiment(create=bool(experiment))  # first, since it may make the lake
    reader = open_reader(uri)
    reader.ping()
    active = str(experiment_id) if experiment_id is not None else _chosen_experiment()
    register(spark, Defaults(uri, (active,) if active else None, here.credentials(uri), used=True))
    here.spark_reads(uri)
    name = reader.experiments(Query("runs", (active,))).get(active) if active else None
    return Used(address.shown, active or None, name)


def _set_up(uri: str | None, experiment: str | None, registry_uri: str | None) -> None:
    settings = dict(os.environ)
    if uri or not any(place.get() for place in _PLACES):
        for place in _PLACES:
            settings.pop(place.name, None)
        uri = settings[config.URI.name] = Address.of(uri or here.active_tracking_uri()).absolute
    settings |= {name: text for name, text in ((config.EXPERIMENT.name, experiment), (config.REGISTRY_URI.name, registry_uri)) if text}
    address = Address.of(uri or "")
    # Others are for one machine, or hold a password.
    if uri is None or address.kind == "lake" or address.is_server or address.scheme == "adbazureml":
        environment.apply(settings)
        return
    open_reader(uri).ping()
    if experiment:
        check_experiment(experiment)
        os.environ[config.EXPERIMENT.name] = experiment
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(registry_uri)  # type: ignore[arg-type]  # None: the tracking server's


def _provided_experiment(create: bool) -> str | None:
    """The id of the experiment that our provider gives this process, if neither code nor MLflow's variables name one."""
    name = experiments.experiment_name() if mlflow.is_tracking_uri_set() and here.chosen_experiment() is None else None
    if name and create:
        return experiments.get_or_create(mlflow.MlflowClient(), name)
    return _id_of(name)


def _chosen_experiment() -> str | None:
    chosen = here.chosen_experiment() if mlflow.is_tracking_uri_set() else None
    return (chosen.id or _id_of(chosen.name)) if chosen else None


def _id_of(name: str | None) -> str | None:
    found = mlflow.get_experiment_by_name(name) if name else None
    return str(found.experiment_id) if found else None
