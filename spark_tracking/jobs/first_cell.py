"""The first cell of a notebook or job where no cluster start could set anything: serverless, a Connect client, a laptop."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from spark_tracking import config
from spark_tracking.cluster import environment, experiments
from spark_tracking.destination import check_experiment
from spark_tracking.uri import LakeUri, is_lake_uri

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_tracking.sources.using import Used

_PLACES = (config.URI, config.AZURE_SUBSCRIPTION, config.AZURE_RESOURCE_GROUP, config.AZURE_WORKSPACE, config.AZURE_CONFIG)
_CLUSTERS = ("databricks", "http", "https", "azureml", "adbazureml")  # beside lakes; others are for one machine, or hold a password


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
    import mlflow.tracking._tracking_service.utils as tracking

    from spark_tracking.sources.using import use as register

    unset = tracking._tracking_uri is None and not config.CONFIGURED.get()
    if tracking_uri or experiment or registry_uri or (unset and any(place.get() for place in _PLACES)):
        before = tracking.get_tracking_uri()
        _set_up(tracking_uri, experiment, registry_uri)
        if experiment or _absolute(before) != tracking.get_tracking_uri():
            _forget_experiment()
    if experiment_id is None:
        experiment_id = _provided_experiment(create=bool(experiment))
    return register(spark, tracking_uri, experiment_id)


def _set_up(uri: str | None, experiment: str | None, registry_uri: str | None) -> None:
    import mlflow
    import mlflow.tracking._tracking_service.utils as tracking

    from spark_tracking.readers.opening import active_tracking_uri, open_reader

    settings = dict(os.environ)
    if uri or not any(place.get() for place in _PLACES):
        for place in _PLACES:
            settings.pop(place.name, None)
        uri = uri or active_tracking_uri()
        uri = settings[config.URI.name] = _absolute(uri)
    settings |= {name: text for name, text in ((config.EXPERIMENT.name, experiment), (config.REGISTRY_URI.name, registry_uri)) if text}
    if uri is None or is_lake_uri(uri) or uri.split(":")[0].lower() in _CLUSTERS:
        environment.apply(settings)
        return
    open_reader(uri).ping()
    if experiment:
        check_experiment(experiment)
        os.environ[config.EXPERIMENT.name] = experiment
    tracking.set_tracking_uri(uri)
    mlflow.set_registry_uri(registry_uri)  # type: ignore[arg-type]  # None: the tracking server's


def _absolute(uri: str) -> str:
    return str(LakeUri.parse(uri)) if is_lake_uri(uri) else uri


def _forget_experiment() -> None:
    """What `mlflow.set_experiment` chose was an id of the server before."""
    from mlflow.tracking import fluent

    if fluent._active_experiment_id and os.environ.get("MLFLOW_EXPERIMENT_ID") == fluent._active_experiment_id:
        del os.environ["MLFLOW_EXPERIMENT_ID"]  # set_experiment has set it, for subprocesses
    fluent._active_experiment_id = None


def _provided_experiment(create: bool) -> str | None:
    """The id of the experiment that our provider gives this process, if neither code nor MLflow's variables name one."""
    import mlflow
    from mlflow.tracking import fluent

    if fluent._active_experiment_id or os.environ.get("MLFLOW_EXPERIMENT_ID") or os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        return None
    name = experiments.experiment_name() if mlflow.is_tracking_uri_set() else None
    if name and create:
        return experiments.get_or_create(mlflow.MlflowClient(), name)
    found = mlflow.get_experiment_by_name(name) if name else None
    return str(found.experiment_id) if found else None
