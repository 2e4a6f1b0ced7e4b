"""What this process was told: which tracking server, which experiment, which credentials; and what Spark was told of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from spark_tracking.address import Address, LakeUri
from spark_tracking.masking import masked

# Where MLflow, its plug-ins, database drivers and Delta look for credentials.
_CREDENTIALS = ("MLFLOW_TRACKING_", "DATABRICKS_", "AZURE_", "AWS_", "GOOGLE_", "PGPASS", "PGSSL")
_NOT_SENT = ("MLFLOW_TRACKING_URI", "DATABRICKS_RUNTIME_VERSION")

_read_by_spark: str | None = None
_warned: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Chosen:
    """An experiment that code or a variable of MLflow's names, by its id or its name; and by which rule."""

    id: str | None
    name: str | None
    rule: str


def active_tracking_uri() -> str:
    """The tracking URI of this process, if somebody set one.

    Raises:
        InvalidInput: nobody did; MLflow would take a new database in the working directory.
        InvalidUri: it is an object store's, which MLflow has no store for.
    """
    import mlflow
    from mlflow.utils.databricks_utils import is_in_databricks_runtime

    from spark_tracking.errors import InvalidInput, InvalidUri

    if not (mlflow.is_tracking_uri_set() or is_in_databricks_runtime()):
        raise InvalidInput("No tracking server was named. Pass tracking_uri=, call mlflow.set_tracking_uri, or set MLFLOW_TRACKING_URI.")
    address = Address.of(str(mlflow.get_tracking_uri()))
    if address.kind == "store":
        raise InvalidUri(f"MLflow cannot track to '{address.shown}'. The tracking URI of a lake there is '{LakeUri.parse(address.uri)}'.")
    return address.uri


def chosen_experiment(environ: Mapping[str, str] | None = None) -> Chosen | None:
    """The experiment that this process was told to log to; None where a provider, or MLflow's default, decides.

    Args:
        environ: another process's variables, of whose code nothing is known.
    """
    if environ is None:
        from mlflow.tracking import fluent

        if fluent._active_experiment_id:
            return Chosen(str(fluent._active_experiment_id), None, "mlflow.set_experiment in this process")
        environ = os.environ
    if id := environ.get("MLFLOW_EXPERIMENT_ID", "").strip():
        return Chosen(id, None, "the variable MLFLOW_EXPERIMENT_ID")
    if name := environ.get("MLFLOW_EXPERIMENT_NAME", "").strip():
        return Chosen(None, name, "the variable MLFLOW_EXPERIMENT_NAME")
    return None


def forget_experiment() -> None:
    """Take back what `mlflow.set_experiment` chose: an id of another server."""
    from mlflow.tracking import fluent

    if fluent._active_experiment_id and os.environ.get("MLFLOW_EXPERIMENT_ID") == fluent._active_experiment_id:
        del os.environ["MLFLOW_EXPERIMENT_ID"]  # set_experiment has set it, for subprocesses
    fluent._active_experiment_id = None


def credentials(tracking_uri: str) -> dict[str, str]:
    """The environment variables with which another process reaches a server: this one's, and what it knows from elsewhere.

    That is `~/.mlflow/credentials`, which a worker has not, and on Databricks the notebook's own token, which nobody can renew.
    """
    from mlflow.utils.credentials import read_mlflow_creds
    from mlflow.utils.uri import is_databricks_uri

    found = {name: value for name, value in os.environ.items() if name.startswith(_CREDENTIALS) and name not in _NOT_SENT}
    file = read_mlflow_creds()
    if file.username and file.password:
        found |= {"MLFLOW_TRACKING_USERNAME": file.username, "MLFLOW_TRACKING_PASSWORD": file.password}
    if is_databricks_uri(tracking_uri) and not found.keys() & {"DATABRICKS_TOKEN", "DATABRICKS_CLIENT_SECRET"}:
        from mlflow.utils.databricks_utils import get_databricks_host_creds

        host = get_databricks_host_creds(tracking_uri)
        if host.host and host.token:
            found |= {"DATABRICKS_HOST": host.host, "DATABRICKS_TOKEN": host.token}
    return found


def spark_reads(uri: str) -> None:
    """Remember the absolute URI that `use` told Spark to read."""
    global _read_by_spark
    _read_by_spark = uri


def warn_where_spark_reads_another() -> None:
    """Say, once for each server, that this process left the one that Spark reads: nothing of ours runs at `load()`."""
    import mlflow

    if _read_by_spark is None or not mlflow.is_tracking_uri_set():
        return
    if (now := Address.of(mlflow.get_tracking_uri())).absolute != _read_by_spark:
        shown = Address.of(_read_by_spark).shown
        warn_once(f"Spark still reads {shown}, as spark_tracking.use(spark) said. Call it again to follow.", about=now.uri)


def warn_once(message: str, about: str = "") -> None:
    """Warn of something, for each `about` once in a process, without what may be a secret."""
    message = masked(message)
    if (message, about) not in _warned:
        _warned.add((message, about))
        warnings.warn(message, stacklevel=2)
