"""Where a cluster tracks to: settings in, MLflow's environment variables out. Pure functions; no network, no MLflow.

A destination is one of four kinds:

| kind | `SPARK_TRACKING_URI` |
|---|---|
| `databricks` | `databricks`, `databricks://profile` |
| `server` | `https://mlflow.example.com`, `http://host:5000/prefix` |
| `lake` | `delta+abfss://…`, `delta+s3://…`, `delta+gs://…`, `delta:///a/shared/folder`: all that `LakeUri` takes |
| `azureml` | `azureml://<region>.api.azureml.ms/mlflow/v1.0/subscriptions/…`, or its parts in `SPARK_TRACKING_AZURE_*` |

MLflow itself is not imported here: a cluster's start has two seconds, and MLflow takes them alone.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from spark_tracking import config
from spark_tracking.masking import carries_more, masked
from spark_tracking.uri import OBJECT_STORES, SCHEMES, LakeUri

if TYPE_CHECKING:
    from spark_tracking.errors import InvalidSetting

FIELDS = ("user", "job", "notebook", "cluster")
_GUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_AZUREML = re.compile(
    rf"azureml://(?P<host>[a-z0-9.-]+)/mlflow/v[12]\.0/subscriptions/(?P<subscription>{_GUID})"
    r"/resourceGroups/(?P<group>[^/?#]+)/providers/Microsoft\.MachineLearningServices/workspaces/(?P<workspace>[^/?#]+)/?",
    re.IGNORECASE,
)
_NO_LAKE_MOUNTS = ("/Volumes/", "/dbfs/", "/Workspace/")
_AZURE_SECRETS = ("AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_FEDERATED_TOKEN_FILE")

_CARRIES_MORE = (
    "'{}' carries credentials, a query or a fragment. Take them out of the URI: credentials belong into variables that come from a secret "
    "scope, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, for a server, and AWS_…, AZURE_… or GOOGLE_… "
    "for a lake."
)

FindRegion = Callable[[str, str, str], str]
"""(subscription, resource group, workspace) -> region."""


@dataclass(frozen=True)
class Destination:
    """One tracking server.

    Attributes:
        kind: `databricks`, `server`, `lake` or `azureml`.
        uri: as MLflow takes it; never holds a credential.
    """

    kind: str
    uri: str

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Parse a tracking URI.

        Raises:
            InvalidUri: a lake's URI that does not parse.
            InvalidSetting: any other text that is no tracking URI for a cluster.

        Example:
            >>> Destination.parse("https://mlflow.example.com/").uri
            'https://mlflow.example.com'
        """
        scheme = text.split(":", 1)[0].lower()
        if text == "databricks" or re.fullmatch(r"databricks://[\w.:-]+", text):
            return cls("databricks", text)
        if carries_more(text) and scheme in ("http", "https", "azureml", "databricks", *SCHEMES, *OBJECT_STORES):
            raise _wrong(_CARRIES_MORE.format(masked(text, text)))
        if scheme in ("http", "https"):
            return cls("server", _server(text))
        if scheme in (*SCHEMES, *OBJECT_STORES) and ":" in text:
            return cls("lake", _lake(text))
        if scheme == "azureml":
            return cls("azureml", _azureml(text))
        raise _wrong(_why_not(scheme, masked(text, text)))


@dataclass(frozen=True)
class Note:
    """What an administrator should know: `text`, and where something should be done about it, `fix`."""

    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.fix}".rstrip()


@dataclass(frozen=True)
class Plan:
    """What a start sets.

    Attributes:
        destination: where runs go.
        variables: environment variables by name, for every Python process of the cluster. Never a secret.
        notes: what an administrator should know.
    """

    destination: Destination
    variables: Mapping[str, str]
    notes: tuple[Note, ...] = field(default=())


def resolve(environ: Mapping[str, str] | None = None, find_region: FindRegion | None = None) -> Plan:
    """Turn `SPARK_TRACKING_*` settings into the variables that MLflow and its plug-ins read.

    Args:
        environ: the settings; the process's environment by default.
        find_region: asked for the region of an Azure ML workspace that is given by its parts without one.

    Raises:
        InvalidSetting: a setting is missing, wrong or contradicts another.
        InvalidUri: a lake's URI does not parse.

    Example:
        >>> resolve({"SPARK_TRACKING_URI": "http://mlflow:5000"}).variables["MLFLOW_TRACKING_URI"]
        'http://mlflow:5000'
    """
    environ = os.environ if environ is None else environ
    _check_characters(environ)
    config.STRICT.get(environ)
    destination = _destination(environ, find_region)
    variables = {"MLFLOW_TRACKING_URI": destination.uri}
    registry = config.REGISTRY_URI.get(environ)
    if registry:
        variables["MLFLOW_REGISTRY_URI"] = _registry(registry)
    elif destination.kind != "databricks":  # there MLflow chooses Unity Catalog; elsewhere a platform's default must not win
        variables["MLFLOW_REGISTRY_URI"] = destination.uri
    if experiment := config.EXPERIMENT.get(environ):
        check_experiment(experiment, destination.kind)
        variables[config.EXPERIMENT.name] = experiment
    if destination.kind == "azureml":
        _check_azure_credentials(environ)
        variables["AZURE_TOKEN_CREDENTIALS"] = "prod"  # azure-identity: no developer's log-ins, which may prompt
    return Plan(destination, variables, tuple(_notes(environ, destination)))


def check_experiment(template: str, kind: str = "server") -> None:
    """Check an experiment's name as a setting gives it.

    Raises:
        InvalidSetting: an unknown `{field}`, unbalanced braces, or a name that the destination cannot have.
    """
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise _wrong(f"{config.EXPERIMENT.name}='{template}': {error}. A brace that is meant is written twice.") from None
    if unknown := [name for name in names if name not in FIELDS]:
        raise _wrong(
            f"{config.EXPERIMENT.name}='{template}' holds {{{unknown[0]}}}. Known are {', '.join('{' + known + '}' for known in FIELDS)}."
        )
    map_experiment(template.format(**dict.fromkeys(FIELDS, "x")), kind, user="x")


def map_experiment(name: str, kind: str, user: str) -> str:
    """The name that an experiment gets at a destination.

    Databricks wants a workspace path: a plain name goes below the user's folder. Azure ML takes letters, digits, `_` and `-`
    only, 256 at most, and a letter or digit first (its own error message says so): other characters become `-`, and a name that
    is too long ends with a digest of the whole.

    Raises:
        InvalidSetting: nothing is left of the name.

    Example:
        >>> map_experiment("/Users/ann@example.com/churn", "azureml", user="ann")
        'Users-ann-example-com-churn'
    """
    mapped = name.strip()
    if kind == "databricks" and mapped and not mapped.startswith("/"):
        mapped = f"/Users/{user}/{mapped}"
    if kind == "azureml":
        mapped = re.sub(r"[^A-Za-z0-9_-]+", "-", mapped).strip("-_")
    limit = 256 if kind == "azureml" else 500  # MLflow's own limit on its servers
    if len(mapped) > limit:
        mapped = f"{mapped[: limit - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    if not mapped or mapped == "/":
        raise _wrong(f"The experiment name '{name}' has no character that a tracking server of kind '{kind}' accepts.")
    return mapped


def azureml_uri(subscription: str, group: str, workspace: str, region: str) -> str:
    """The tracking URI of an Azure ML workspace in the public cloud.

    Raises:
        InvalidSetting: a part has the wrong form.
    """
    region = region.lower().replace(" ", "")  # the portal writes "West Europe"
    for text, pattern, setting, expected in (
        (subscription, _GUID, config.AZURE_SUBSCRIPTION, "a GUID"),
        (group, r"[\w().-]{1,90}", config.AZURE_RESOURCE_GROUP, "a resource group's name"),
        (workspace, r"[A-Za-z0-9][\w-]{1,32}", config.AZURE_WORKSPACE, "a workspace's name"),
        (region, r"[a-z0-9]+", config.AZURE_REGION, "a region such as westeurope"),
    ):
        if not re.fullmatch(pattern, text):
            raise _wrong(f"{setting.name}='{text}' is not valid. Expected {expected}.")
    return (
        f"azureml://{region}.api.azureml.ms/mlflow/v1.0/subscriptions/{subscription}/resourceGroups/{group}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{workspace}"
    )


def _destination(environ: Mapping[str, str], find_region: FindRegion | None) -> Destination:
    uri = config.URI.get(environ)
    parts = _azure_parts(environ)
    if uri and parts:
        raise _wrong(f"Both {config.URI.name} and SPARK_TRACKING_AZURE_* are set. Keep one: they name the same thing.")
    if uri:
        return Destination.parse(uri)
    if not parts:
        near = _typos(environ)
        raise _wrong(
            f"{config.URI.name} is not set. Expected databricks, http(s)://…, delta+abfss://… or azureml://…"
            + (f" Did you mean it by {near[0][0]}?" if near else "")
        )
    subscription, group, workspace = (parts.get(name, "") for name in ("subscription_id", "resource_group", "workspace_name"))
    if missing := [name for name in ("subscription_id", "resource_group", "workspace_name") if not parts.get(name)]:
        raise _wrong(f"The Azure ML workspace is not complete: {', '.join(missing)} missing. Set SPARK_TRACKING_AZURE_* or the whole URI.")
    region = config.AZURE_REGION.get(environ)
    azureml_uri(subscription, group, workspace, region or "anywhere")
    if not region:
        _check_azure_credentials(environ)
        if find_region is None:
            raise _wrong(f"{config.AZURE_REGION.name} is not set. Set it to the workspace's region, such as westeurope.")
        region = find_region(subscription, group, workspace)
    return Destination("azureml", azureml_uri(subscription, group, workspace, region))


def _azure_parts(environ: Mapping[str, str]) -> dict[str, str]:
    parts = {
        "subscription_id": config.AZURE_SUBSCRIPTION.get(environ),
        "resource_group": config.AZURE_RESOURCE_GROUP.get(environ),
        "workspace_name": config.AZURE_WORKSPACE.get(environ),
    }
    given = {name: text for name, text in parts.items() if text}
    path = config.AZURE_CONFIG.get(environ)
    if not path:
        return given
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        file = {name: str(document[name]) for name in parts}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _wrong(
            f"{config.AZURE_CONFIG.name}='{path}' is not a workspace's config.json ({type(error).__name__}: {error}). "
            "Expected JSON with subscription_id, resource_group and workspace_name, as the Azure portal downloads it."
        ) from None
    return {**file, **given}


def _server(text: str) -> str:
    try:
        parts = urlsplit(text)
        valid = bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise _wrong(f"'{text}' names no host. Expected http(s)://host[:port][/prefix].")
    if re.search(r"\s", text):
        raise _wrong(f"'{text}' holds a blank. Expected http(s)://host[:port][/prefix].")
    return text.rstrip("/")


def _lake(text: str) -> str:
    uri = LakeUri.parse(text)
    if uri.is_local:
        if not text.split(":", 1)[1].startswith("/"):
            raise _wrong(f"'{text}' is relative, so each process would have a lake of its own. Expected delta:///absolute/path.")
        if uri.root.startswith(_NO_LAKE_MOUNTS):
            raise _wrong(
                f"'{text}' lies on a mounted object store, which cannot append or lock. Take its cloud URI "
                "(delta+abfss://…, delta+s3://…, delta+gs://…), or an `mlflow server` in front of the lake."
            )
    return str(uri)


def _azureml(text: str) -> str:
    if _AZUREML.fullmatch(text):
        return text.rstrip("/")
    found = re.search(r"/subscriptions/([^/]*)", text, re.IGNORECASE)
    why = f"its subscription '{found[1]}' is no GUID" if found and not re.fullmatch(_GUID, found[1]) else "its form is another"
    raise _wrong(
        f"'{text}' is not an Azure ML tracking URI: {why}. Expected azureml://<region>.api.azureml.ms/mlflow/v1.0/subscriptions/<GUID>"
        "/resourceGroups/<group>/providers/Microsoft.MachineLearningServices/workspaces/<workspace> "
        "(`az ml workspace show --query mlflow_tracking_uri`)."
    )


def _registry(text: str) -> str:
    if re.fullmatch(r"databricks-uc(://[\w.:-]+)?", text):
        return text
    return Destination.parse(text).uri


def _why_not(scheme: str, shown: str) -> str:
    reasons = {
        "adbazureml": "was retired with azureml-mlflow 1.43 and no longer reaches a server; "
        "take the azureml:// URI (`az ml workspace show --query mlflow_tracking_uri`) or SPARK_TRACKING_AZURE_*",
        "file": "is a folder of one node, and MLflow's file store is retired; take delta:///a/shared/folder",
        "sqlite": "is a file of one node; take delta:///a/shared/folder, or an `mlflow server` in front of the database",
    }
    if scheme.split("+")[0] in ("postgresql", "mysql", "mssql"):
        reason = "is a database, whose password every process would need; put an `mlflow server` in front of it"
    else:
        reason = reasons.get(scheme, "is no tracking URI; expected databricks, http(s)://…, delta+abfss://… (or s3, gs) or azureml://…")
    return f"{config.URI.name}='{shown}' {reason}."


def _check_azure_credentials(environ: Mapping[str, str]) -> None:
    """A service principal must be whole: with a part of it missing, azureml-mlflow falls back to an interactive log-in."""
    secret = any(environ.get(name) for name in _AZURE_SECRETS)
    missing = [name for name in ("AZURE_TENANT_ID", "AZURE_CLIENT_ID") if not environ.get(name)]
    if secret and missing:
        raise _wrong(f"The service principal for Azure ML is not complete: {' and '.join(missing)} not set. Add it from the secret scope.")
    if not secret and environ.get("AZURE_TENANT_ID"):
        raise _wrong(
            "The service principal for Azure ML is not complete: AZURE_CLIENT_SECRET is not set. Add it from the secret scope, "
            "or take AZURE_TENANT_ID away to use the node's managed identity."
        )


def _check_characters(environ: Mapping[str, str]) -> None:
    for name, text in environ.items():
        if not name.startswith("SPARK_TRACKING_") or name == config.PROBLEM.name:
            continue
        if re.search(r"[\x00-\x1f\x7f]", text):
            raise _wrong(f"{name} holds a control character or a line break. Set it to one line of text.")
        if re.fullmatch(r"\{\{.*\}\}", text.strip()):
            raise _wrong(f"{name}='{text}' is an unresolved secret reference. Check the names of scope and key, and your access.")


def _typos(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Variables with our prefix that we do not read, each with the nearest that we do, or ''."""
    known = [setting.name for setting in config.ALL]
    strange = sorted(name for name in environ if name.startswith("SPARK_TRACKING_") and name not in known)
    return [(name, next(iter(difflib.get_close_matches(name, known, 1)), "")) for name in strange]


def _notes(environ: Mapping[str, str], destination: Destination) -> list[Note]:
    notes = [
        Note(f"{name} is not a setting of spark-tracking.", f"Did you mean {near}?" if near else "Take it away.")
        for name, near in _typos(environ)
    ]
    before = environ.get("MLFLOW_TRACKING_URI", "")
    if before and before != destination.uri:
        shown = masked(before, before)
        notes.append(Note(f"MLFLOW_TRACKING_URI was '{shown}' and becomes '{destination.uri}': {config.URI.name} decides."))
    if environ.get("MLFLOW_EXPERIMENT_NAME") or environ.get("MLFLOW_EXPERIMENT_ID"):
        text = (
            "MLFLOW_EXPERIMENT_NAME or _ID is set: for a whole cluster it sends subprocesses of a job that calls set_experiment elsewhere."
        )
        notes.append(Note(text, f"Set {config.EXPERIMENT.name} instead."))
    if destination.kind == "lake":
        text = "Scala's MlflowContext and R do not know a lake's URI: give them `mlflow server --backend-store-uri "
        notes.append(Note(f"{text}'{destination.uri}'` on one node, and its http:// address."))
        if destination.uri.startswith("delta:///"):
            notes.append(Note(f"'{destination.uri}' is a local folder: every node must see the same one (NFS or the like)."))
    if destination.uri.startswith("http://") and any(environ.get(f"MLFLOW_TRACKING_{name}") for name in ("PASSWORD", "TOKEN")):
        notes.append(Note("Credentials go to an http:// server unencrypted.", "Prefer https://."))
    return notes


def _wrong(message: str) -> InvalidSetting:
    from spark_tracking.errors import InvalidSetting  # only here: it imports MLflow

    return InvalidSetting(message)
