"""`use`: from the user's process to Spark's, where the sources run."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from spark_tracking.errors import InvalidUri
from spark_tracking.masking import masked
from spark_tracking.readers.credentials import credentials
from spark_tracking.readers.opening import active_tracking_uri, open_reader
from spark_tracking.readers.query import Query
from spark_tracking.sources.options import Defaults
from spark_tracking.sources.pythons import check_workers
from spark_tracking.sources.shipping import ensure_package, send_defaults
from spark_tracking.uri import LakeUri, is_lake_uri

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_read_by_spark: str | None = None


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


def use(spark: SparkSession, tracking_uri: str | None = None, experiment_id: str | int | None = None) -> Used:
    """Let `spark` read this process's tracking server: registers `mlflow` and `mlflow-experiment` on the session.

    Spark's own processes do not see what `mlflow.set_tracking_uri`, `mlflow.set_experiment` or `os.environ` say here, so call
    it again after a change. Credentials travel beside the plan, never in it.

    Args:
        spark: a session, classic or Spark Connect.
        tracking_uri: the server; default `mlflow.get_tracking_uri()`. May hold a database's password.
        experiment_id: what `format("mlflow-experiment").load()` reads; default the active experiment.

    Returns:
        What Spark reads now: server and experiment.

    Raises:
        InvalidInput: no tracking server was named here either.
        InvalidState: Spark's workers run a Python without this package.
        NotFound, PermissionRefused, Unavailable, LakeFormatError: there is none at the URI.

    Example:
        >>> mlflow.set_tracking_uri("delta:///shared/lake")
        >>> use(spark)
        >>> spark.read.format("mlflow-experiment").load("1").orderBy("metrics.acc", ascending=False).show()
    """
    from pyspark.errors import AnalysisException

    from spark_tracking.sources.datasource import ExperimentSource, MlflowSource

    uri = absolute(tracking_uri or active_tracking_uri())
    reader = open_reader(uri)
    reader.ping()
    active = str(experiment_id) if experiment_id is not None else _active_experiment(uri)
    defaults = Defaults(uri, (active,) if active else None, credentials(uri), used=True)
    if "connect" in type(spark).__module__:
        ensure_package(spark)
    else:
        check_workers(spark)
    try:
        for source in (MlflowSource, ExperimentSource):
            spark.dataSource.register(_with_defaults(source, defaults))
    except AnalysisException as error:
        if error.getCondition() != "DATA_SOURCE_ALREADY_EXISTS":
            raise
        send_defaults(spark, defaults)
    _warn_of_changes(uri)
    name = reader.experiments(Query("runs", (active,))).get(active) if active else None
    return Used(masked(uri, uri), active or None, name)


def _with_defaults(source: type[Any], defaults: Defaults) -> type[Any]:
    """A class that is in no module, so that it is pickled with its values and not by name."""
    return type(source.__name__, (source,), {"defaults": defaults, "__doc__": source.__doc__})


def absolute(uri: str) -> str:
    """The URI for a process with another working directory."""
    if is_lake_uri(uri):
        return str(LakeUri.parse(uri))
    head, slashes, path = uri.partition(":///")
    if head == "sqlite" and slashes and path and not path.startswith("/"):
        return f"sqlite:///{os.path.abspath(path)}"
    return uri


def _active_experiment(uri: str) -> str | None:
    """The id of the experiment that this process logs to, if it logs to `uri` and somebody chose one."""
    import mlflow
    from mlflow.tracking import fluent

    if not mlflow.is_tracking_uri_set() or absolute(mlflow.get_tracking_uri()) != uri:
        return None
    if fluent._active_experiment_id:
        return str(fluent._active_experiment_id)
    id, name = os.environ.get("MLFLOW_EXPERIMENT_ID"), os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if id or not name:
        return id or None
    found = mlflow.get_experiment_by_name(name)
    return str(found.experiment_id) if found else None


def _warn_of_changes(uri: str) -> None:
    """From now on `mlflow.set_tracking_uri` says when it leaves the server that Spark reads: nothing of ours runs at `load()`."""
    global _read_by_spark
    import mlflow

    _read_by_spark = uri
    original = mlflow.set_tracking_uri
    if hasattr(original, "__wrapped__"):
        return

    @wraps(original)
    def set_tracking_uri(uri: Any) -> None:
        global _read_by_spark
        original(uri)
        if not uri:
            _read_by_spark = None
        elif _read_by_spark and not _same(mlflow.get_tracking_uri(), _read_by_spark):
            warnings.warn(
                f"Spark still reads {masked(_read_by_spark, _read_by_spark)}, as spark_tracking.use(spark) said. Call it again to follow.",
                stacklevel=2,
            )

    mlflow.set_tracking_uri = mlflow.tracking.set_tracking_uri = set_tracking_uri


def _same(uri: str, absolute_uri: str) -> bool:
    try:
        return absolute(uri) == absolute_uri
    except InvalidUri:
        return False
