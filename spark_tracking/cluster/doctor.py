"""What applies in this process, by which rule, whether it works, and what to do where it does not."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import mlflow
from mlflow.entities import ViewType
from mlflow.tracking._model_registry import utils as registry
from mlflow.tracking._tracking_service import utils as tracking

from spark_tracking import config, here
from spark_tracking.address import Address, LakeUri
from spark_tracking.cluster import azureml, experiments, place
from spark_tracking.cluster.findings import ERROR, OK, WARNING, Finding, Report
from spark_tracking.cluster.nodes import examine_cluster, examine_executors, fingerprint_in
from spark_tracking.cluster.patience import in_time
from spark_tracking.cluster.settings import resolve
from spark_tracking.cluster.versions import examine_versions
from spark_tracking.config import temporary_variables
from spark_tracking.errors import InvalidInput, InvalidUri, LakeFormatError, SparkTrackingError
from spark_tracking.masking import masked

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_CREDENTIALS = {
    "server": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_CLIENT_CERT_PATH"),
    "databricks": ("DATABRICKS_HOST", "DATABRICKS_TOKEN", "DATABRICKS_CLIENT_ID", "DATABRICKS_CLIENT_SECRET", "DATABRICKS_CONFIG_PROFILE"),
    "azureml": ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_FEDERATED_TOKEN_FILE"),
    "lake": ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN",
             "AZURE_CLIENT_ID", "GOOGLE_APPLICATION_CREDENTIALS"),
}  # fmt: skip
_CALL_SECONDS = "8"  # for an HTTP request
_REACH_SECONDS = 40.0  # for all of them, and for stores that have patience of their own


def doctor(spark: SparkSession | str | None = None, *, read_only: bool = False) -> Report:
    """Say what tracking this process has, by which rule, whether it works, and what to do where it does not.

    Args:
        spark: a session, classic or Connect, whose executors are looked at, too; or the master to start one on ("" for the one of
            Spark's own configuration).
        read_only: do not create (and delete) a run to prove that we may write.

    Example:
        >>> spark_tracking.doctor(spark)                                 # doctest: +SKIP
    """
    findings = list(examine(read_only=read_only))
    if spark is not None:
        findings += examine_cluster(spark) if isinstance(spark, str) else examine_executors(spark)
    return Report(tuple(findings))


def examine(*, read_only: bool = False) -> Iterator[Finding]:
    """Look at this process, without the executors of any session."""
    address = Address.of(mlflow.get_tracking_uri())
    yield from _start(address.uri)
    yield from _tracking(address)
    yield from _experiment(address.kind)
    yield from _credentials(address.kind)
    yield from _reach(address, read_only)
    yield from examine_versions()


def _start(uri: str) -> Iterator[Finding]:
    """What the cluster's start has left, and whether this process is younger than it."""
    if problem := config.PROBLEM.get():
        yield Finding(ERROR, "start", f"The start left tracking as it was: {problem}", "Correct the setting and restart the cluster.")
        return
    if config.URI.get() or config.AZURE_WORKSPACE.get() or config.AZURE_CONFIG.get():
        try:
            plan = resolve(find_region=lambda *_: "unknown")
        except SparkTrackingError as error:
            yield Finding(ERROR, "settings", error.message, "Correct the setting and restart the cluster.")
        else:
            for note in plan.notes:
                yield Finding(WARNING if note.fix else OK, "settings", note.text, note.fix)
            wanted = plan.destination.uri
            if uri != wanted and "unknown." not in wanted:
                fix = "Run the init script and start this process anew, or call spark_tracking.use(spark) in its first cell."
                yield Finding(WARNING, "settings", f"They name {wanted}, which this process does not track to.", fix)
    current, file = config.CONFIGURED.get(), config.ENV_FILE.get()
    now = fingerprint_in(file)
    if now and current != now:
        text = f"This process was started with settings {current or '(none)'}, but {file} now holds {now}."
        yield Finding(WARNING, "start", text, "Restart the Spark daemon, the kernel or the shell that this process comes from.")
    elif current:
        yield Finding(OK, "start", f"The settings of the cluster's start apply ({file or 'set by spark_tracking'}).")


def _tracking(address: Address) -> Iterator[Finding]:
    if tracking._tracking_uri is not None:
        rule = "mlflow.set_tracking_uri in this process"
    elif not os.environ.get("MLFLOW_TRACKING_URI"):
        rule = "the default of the platform or MLflow: nothing else is set"
    elif not config.CONFIGURED.get():
        rule = "the variable MLFLOW_TRACKING_URI"
    else:
        rule = "the cluster's start" if config.ENV_FILE.get() else "spark_tracking.use, or the cluster's configuration"
    yield Finding(OK, "tracking", f"{address.shown}, by {rule}.")
    if rule.startswith("the default") and address.kind != "databricks":
        fix = f"Set {config.URI.name} for the cluster, or MLFLOW_TRACKING_URI."
        yield Finding(WARNING, "tracking", "No tracking server is set, so runs stay on this machine.", fix)
    if registry._registry_uri is not None:
        rule = "mlflow.set_registry_uri in this process"
    elif os.environ.get("MLFLOW_REGISTRY_URI"):
        rule = "the variable MLFLOW_REGISTRY_URI"
    elif place.spark_setting("spark.mlflow.modelRegistryUri"):
        rule = "the Spark setting spark.mlflow.modelRegistryUri"
    else:
        rule = "the tracking server"
    yield Finding(OK, "registry", f"{Address.of(mlflow.get_registry_uri()).shown}, by {rule}.")


def _experiment(kind: str) -> Iterator[Finding]:
    if chosen := here.chosen_experiment():
        yield Finding(OK, "experiment", f"{chosen.name or f'id {chosen.id}'}, by {chosen.rule}.")
        return
    try:
        name = experiments.experiment_name()
    except SparkTrackingError as error:
        yield Finding(ERROR, "experiment", error.message, f"Correct {config.EXPERIMENT.name}.")
        return
    if name:
        rule = f"{config.EXPERIMENT.name}='{config.EXPERIMENT.get()}'" if config.EXPERIMENT.get() else "the notebook's or job's own name"
        yield Finding(OK, "experiment", f"{name}, by {rule}; created at first use where it is missing.")
    else:
        text = "the notebook's own, by Databricks." if kind == "databricks" else "Default, since nothing names another."
        yield Finding(OK, "experiment", text)


def _credentials(kind: str) -> Iterator[Finding]:
    names = [name for name in _CREDENTIALS.get(kind, ()) if os.environ.get(name)]
    if names:
        yield Finding(OK, "credentials", f"{', '.join(names)} from the environment (values are not shown).")
    elif kind in ("server", "databricks", "azureml"):
        yield Finding(OK, "credentials", "none in the environment; a profile, the node's identity or an open server is used.")
    for name in ("MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN"):
        if name in names and (expires := token_expiry(os.environ[name])) is not None:
            yield _expiry(name, expires)
    if kind == "azureml":
        yield _azure()


def _azure() -> Finding:
    try:
        azureml.check_plugin()
        found = azureml.token("https://ml.azure.com/.default")
    except (SparkTrackingError, ImportError) as error:
        return Finding(ERROR, "Azure ML", str(error), "See docs/platforms/azure-ml.md.")
    return _expiry("the token of Azure ML, which renews itself,", float(found.expires_on))


def token_expiry(token: str) -> float | None:
    """When a JSON web token expires, in seconds since 1970; None for one of another kind. The signature is not looked at."""
    try:
        body = token.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["exp"])
    except (IndexError, ValueError, KeyError, TypeError):
        return None


def _expiry(name: str, expires: float) -> Finding:
    minutes = (expires - time.time()) / 60
    if minutes <= 0:
        return Finding(ERROR, "credentials", f"{name} expired {-minutes:.0f} minutes ago.", "Renew it in the secret scope and restart.")
    soon = minutes < 60 and "renews" not in name
    fix = "Long jobs need one that lives longer." if soon else ""
    return Finding(WARNING if soon else OK, "credentials", f"{name} expires in {minutes:.0f} minutes.", fix)


def _reach(address: Address, read_only: bool) -> Iterator[Finding]:
    if not mlflow.is_tracking_uri_set() and address.kind != "databricks":
        return  # MLflow's own default, a database in the working folder, which looking at it would make
    with temporary_variables({"MLFLOW_HTTP_REQUEST_TIMEOUT": _CALL_SECONDS, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}):
        begun = time.perf_counter()
        try:
            if address.kind == "store":
                raise InvalidUri(f"MLflow knows no tracking server for '{address.uri}'. A lake there is '{LakeUri.parse(address.uri)}'.")
            if missing := address.kind == "lake" and in_time(lambda: _no_lake(address.uri), _REACH_SECONDS):
                fix = "Check the spelling. The first run makes it where it is meant, or `spark-tracking lake init`."
                yield Finding(ERROR if read_only else WARNING, "read", missing, fix)
                if read_only:
                    return
            in_time(lambda: mlflow.MlflowClient().search_experiments(max_results=1), _REACH_SECONDS)
        except Exception as error:
            yield Finding(ERROR, "read", f"The server cannot be read: {_short(error)}", _fix_for(error, address.kind))
            return
        yield Finding(OK, "read", f"The server answers ({(time.perf_counter() - begun) * 1000:.0f} ms).")
        if not read_only:
            yield _write(address.kind)


def _no_lake(uri: str) -> str:
    """Why there is no lake, or ''; MLflow's first call, also one that reads, would make it."""
    from spark_tracking.lake.lake import Lake

    try:
        Lake.open(uri)
    except LakeFormatError as error:
        return error.message
    return ""


def _write(kind: str) -> Finding:
    try:
        number = in_time(lambda: _probe(kind), _REACH_SECONDS)
    except Exception as error:
        return Finding(ERROR, "write", f"A run cannot be written: {_short(error)}", _fix_for(error, kind))
    if number is None:
        return Finding(OK, "write", "Not tried: the experiment is only known inside a notebook or job.")
    return Finding(OK, "write", f"A run was written to experiment {number} and deleted again; a server keeps this one run in its trash.")


def _probe(kind: str) -> str | None:
    """Create a run, log to it and delete it, and return its experiment: nothing less proves that the next job may.

    A lake or a database forgets the run for good. A server cannot, so its one run of this kind is taken out of the trash and put back.
    """
    client = mlflow.MlflowClient()
    name, chosen = experiments.experiment_name(), here.chosen_experiment()
    found = client.get_experiment_by_name(name) if name else None
    number = found.experiment_id if found else (chosen and chosen.id) or (None if kind == "databricks" else "0")
    if number is None:
        return None
    forget = getattr(client._tracking_client.store, "_hard_delete_run", None)
    kept = [] if forget else client.search_runs([number], "tags.`spark_tracking.doctor` = 'true'", ViewType.DELETED_ONLY, max_results=1)
    if kept:
        run = kept[0]
        client.restore_run(run.info.run_id)
    else:
        run = client.create_run(number, run_name="spark-tracking doctor", tags={"spark_tracking.doctor": "true"})
    try:
        client.log_metric(run.info.run_id, "probe", 1.0)
    finally:
        client.delete_run(run.info.run_id)
        if forget:
            forget(run.info.run_id)
    return str(number)


def _fix_for(error: Exception, kind: str) -> str:
    code = str(getattr(error, "error_code", ""))
    if code in ("PERMISSION_DENIED", "UNAUTHENTICATED") or re.search(r"\b40[13]\b", str(error)):
        return "Check the credentials above and the rights of the identity on the server."
    if isinstance(error, InvalidInput):
        return f"Correct the tracking URI: mlflow.set_tracking_uri, {config.URI.name} or MLFLOW_TRACKING_URI."
    if kind == "lake":
        return "Check that the root exists, is the same for every node, and that the identity may read and write it."
    return "Check the address, that the server runs, and that this network may reach it (proxy, firewall, private link)."


def _short(error: Exception) -> str:
    text = masked(" ".join(str(error).split()))
    return text if len(text) <= 300 else text[:297] + "..."
