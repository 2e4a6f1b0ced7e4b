"""Where a cluster tracks to: settings in, MLflow's environment variables out. Pure functions; no network.

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
from spark_tracking.address import Address, LakeUri
from spark_tracking.masking import carries_more, masked

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
_PARTS = {
    "subscription_id": config.AZURE_SUBSCRIPTION,
    "resource_group": config.AZURE_RESOURCE_GROUP,
    "workspace_name": config.AZURE_WORKSPACE,
}

_CARRIES_MORE = (
    "'{}' carries credentials, a query or a fragment. Take them out of the URI: credentials belong into variables that come from a secret "
    "scope, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, for a server, and AWS_…, AZURE_… or GOOGLE_… "
    "for a lake."
)
_A_DATABASE = "is a database, whose password every process would need; put an `mlflow server` in front of it"
_WHY_NOT = {
    "adbazureml": "was retired with azureml-mlflow 1.43 and no longer reaches a server; "
    "take the azureml:// URI (`az ml workspace show --query mlflow_tracking_uri`) or SPARK_TRACKING_AZURE_*",
    "file": "is a folder of one node, and MLflow's file store is retired; take delta:///a/shared/folder",
    "sqlite": "is a file of one node; take delta:///a/shared/folder, or an `mlflow server` in front of the database",
    **dict.fromkeys(("postgresql", "mysql", "mssql"), _A_DATABASE),
}

FindRegion = Callable[[str, str, str], str]
"""(subscription, resource group, workspace) -> region."""


@dataclass(frozen=True)
class Note:
    """What an administrator should know, and what to do about it, or ''."""

    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.fix}".rstrip()


@dataclass(frozen=True)
class Plan:
    """What a start sets: where runs go, and the variables of every Python process of the cluster. No secret is in any of it."""

    destination: Address
    variables: Mapping[str, str]
    notes: tuple[Note, ...] = field(default=())


def resolve(environ: Mapping[str, str] | None = None, find_region: FindRegion | None = None) -> Plan:
    """Turn `SPARK_TRACKING_*` settings, by default the process's, into the variables that MLflow and its plug-ins read.

    Args:
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
    address = _destination(environ, find_region)
    variables = {"MLFLOW_TRACKING_URI": address.uri}
    if registry := config.REGISTRY_URI.get(environ):
        catalog = re.fullmatch(r"databricks-uc(://[\w.:-]+)?", registry)
        variables["MLFLOW_REGISTRY_URI"] = registry if catalog else destination(registry).uri
    elif address.kind != "databricks":  # there MLflow chooses Unity Catalog; elsewhere a platform's default must not win
        variables["MLFLOW_REGISTRY_URI"] = address.uri
    if experiment := config.EXPERIMENT.get(environ):
        check_experiment(experiment, address.kind)
        variables[config.EXPERIMENT.name] = experiment
    if address.kind == "azureml":
        _check_azure_credentials(environ)
        variables["AZURE_TOKEN_CREDENTIALS"] = "prod"  # azure-identity: no developer's log-ins, which may prompt
    return Plan(address, variables, tuple(_notes(environ, address)))


def destination(text: str) -> Address:
    """The address of a server that every process of a cluster can track to.

    Raises:
        InvalidUri: a lake's URI that does not parse.
        InvalidSetting: any other text that is no tracking URI for a cluster.

    Example:
        >>> destination("https://mlflow.example.com/").uri
        'https://mlflow.example.com'
    """
    address = Address.of(text)
    if text == "databricks" or re.fullmatch(r"databricks://[\w.:-]+", text):
        return address
    checked = {"lake": _lake, "store": _lake, "server": _server, "azureml": _azureml}.get(address.kind)
    if (checked or address.scheme == "databricks") and carries_more(text):
        raise _wrong(_CARRIES_MORE.format(address.shown))
    if checked:
        return Address.of(checked(text))
    driverless = address.scheme.partition("+")[0]
    reason = _WHY_NOT.get(driverless, "is no tracking URI; expected databricks, http(s)://…, delta+abfss://… (or s3, gs) or azureml://…")
    raise _wrong(f"{config.URI.name}='{address.shown}' {reason}.")


def check_experiment(template: str, kind: str = "server") -> None:
    """Refuse (InvalidSetting) unknown `{field}`s, unbalanced braces, and a name that the destination cannot have."""
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
    """The tracking URI of an Azure ML workspace in the public cloud; InvalidSetting where a part has the wrong form."""
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


def _destination(environ: Mapping[str, str], find_region: FindRegion | None) -> Address:
    uri = config.URI.get(environ)
    parts = _azure_parts(environ)
    if uri and parts:
        raise _wrong(f"Both {config.URI.name} and SPARK_TRACKING_AZURE_* are set. Keep one: they name the same thing.")
    if uri:
        return destination(uri)
    if not parts:
        near = _typos(environ)
        raise _wrong(
            f"{config.URI.name} is not set. Expected databricks, http(s)://…, delta+abfss://… or azureml://…"
            + (f" Did you mean it by {near[0][0]}?" if near else "")
        )
    if missing := [name for name in _PARTS if not parts.get(name)]:
        raise _wrong(f"The Azure ML workspace is not complete: {', '.join(missing)} missing. Set SPARK_TRACKING_AZURE_* or the whole URI.")
    subscription, group, workspace = (parts[name] for name in _PARTS)
    region = config.AZURE_REGION.get(environ)
    azureml_uri(subscription, group, workspace, region or "anywhere")
    if not region:
        _check_azure_credentials(environ)
        if find_region is None:
            raise _wrong(f"{config.AZURE_REGION.name} is not set. Set it to the workspace's region, such as westeurope.")
        region = find_region(subscription, group, workspace)
    return Address.of(azureml_uri(subscription, group, workspace, region))


def _azure_parts(environ: Mapping[str, str]) -> dict[str, str]:
    given = {name: text for name, setting in _PARTS.items() if (text := setting.get(environ))}
    path = config.AZURE_CONFIG.get(environ)
    if not path:
        return given
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        return {**{name: str(document[name]) for name in _PARTS}, **given}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _wrong(
            f"{config.AZURE_CONFIG.name}='{path}' is not a workspace's config.json ({type(error).__name__}: {error}). "
            "Expected JSON with subscription_id, resource_group and workspace_name, as the Azure portal downloads it."
        ) from None


def _server(text: str) -> str:
    try:
        parts = urlsplit(text)
        valid = bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    blank = re.search(r"\s", text)
    if blank or not valid:
        raise _wrong(f"'{text}' {'holds a blank' if valid else 'names no host'}. Expected http(s)://host[:port][/prefix].")
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


def _notes(environ: Mapping[str, str], address: Address) -> list[Note]:
    notes = [
        Note(f"{name} is not a setting of spark-tracking.", f"Did you mean {near}?" if near else "Take it away.")
        for name, near in _typos(environ)
    ]
    before = environ.get("MLFLOW_TRACKING_URI", "")
    if before and before != address.uri:
        notes.append(Note(f"MLFLOW_TRACKING_URI was '{masked(before, before)}' and becomes '{address.uri}': {config.URI.name} decides."))
    if environ.get("MLFLOW_EXPERIMENT_NAME") or environ.get("MLFLOW_EXPERIMENT_ID"):
        text = (
            "MLFLOW_EXPERIMENT_NAME or _ID is set: for a whole cluster it sends subprocesses of a job that calls set_experiment elsewhere."
        )
        notes.append(Note(text, f"Set {config.EXPERIMENT.name} instead."))
    if address.kind == "lake":
        text = "Scala's MlflowContext and R do not know a lake's URI: give them `mlflow server --backend-store-uri "
        notes.append(Note(f"{text}'{address.uri}'` on one node, and its http:// address."))
        if address.uri.startswith("delta:///"):
            notes.append(Note(f"'{address.uri}' is a local folder: every node must see the same one (NFS or the like)."))
    if address.uri.startswith("http://") and any(environ.get(f"MLFLOW_TRACKING_{name}") for name in ("PASSWORD", "TOKEN")):
        notes.append(Note("Credentials go to an http:// server unencrypted.", "Prefer https://."))
    return notes


def _wrong(message: str) -> InvalidSetting:
    from spark_tracking.errors import InvalidSetting  # only here: it imports MLflow

    return InvalidSetting(message)
