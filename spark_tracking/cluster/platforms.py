"""One set of settings in the form that each platform takes: a Databricks compute policy or job cluster, EMR's configurations,
Synapse's Spark properties.

Forms: docs.databricks.com/admin/clusters/policy-definition and /api/workspace/clusterpolicies/create;
docs.aws.amazon.com/emr/latest/ReleaseGuide/emr-configure-apps.html;
spark.apache.org/docs/latest/running-on-yarn.html (`spark.yarn.appMasterEnv.*`, `spark.executorEnv.*`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spark_tracking import config
from spark_tracking.cluster.environment import marked
from spark_tracking.cluster.settings import Plan, resolve
from spark_tracking.errors import InvalidInput

# Databricks anchors a policy's regex at both ends. 17.0 is the first runtime with Spark 4 and MLflow 3; from 18 LTS on keys have no minor
# version (18.x-scala2.13).
_RUNTIMES = r"(1[7-9]|[2-9][0-9])(\.[0-9]+)?\.x-.*"
_SECRET = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Settings:
    """What a cluster gets: `SPARK_TRACKING_*` and other variables, secret ones as `scope/key`, and where the init script lies."""

    variables: Mapping[str, str]
    secrets: Mapping[str, str] = field(default_factory=dict)
    init_script: str = ""

    @property
    def references(self) -> dict[str, str]:
        """The secrets as Databricks takes them in a variable's place."""
        return {name: f"{{{{secrets/{reference}}}}}" for name, reference in self.secrets.items()}

    def plan(self) -> Plan:
        """What these settings come to, checked as a start checks them; secrets count as set, and none may stand in the open."""
        for name, reference in self.secrets.items():
            if not _SECRET.fullmatch(reference):
                raise InvalidInput(f"The secret of {name} is '{reference}'. Expected scope/key.")
        for name in self.variables:
            if re.search(r"SECRET|PASSWORD|TOKEN|ACCOUNT_KEY|ACCESS_KEY", name) and name != "AZURE_TOKEN_CREDENTIALS":
                raise InvalidInput(f"{name} would stand in the open. Give it by --secret, as scope/key.")
        return resolve({**self.variables, **dict.fromkeys(self.secrets, "set")}, find_region=lambda *_: "found-at-start")


def databricks_policy(settings: Settings, name: str = "spark-tracking") -> dict[str, Any]:
    """The request that creates a compute policy (`POST /api/2.0/policies/clusters/create`); `definition` is JSON in a string.

    InvalidInput, of this and the following: a setting, a secret's reference or the init script's place is wrong.
    """
    settings.plan()
    rules: dict[str, Any] = {
        "spark_version": {"type": "regex", "pattern": _RUNTIMES},
        f"init_scripts.0.{_script_kind(settings.init_script)}.destination": {"type": "fixed", "value": settings.init_script},
        **{f"spark_env_vars.{name}": {"type": "fixed", "value": value} for name, value in settings.variables.items()},
        **{f"spark_env_vars.{name}": {"type": "fixed", "value": value, "hidden": True} for name, value in settings.references.items()},
    }
    request: dict[str, Any] = {"name": name, "definition": json.dumps(rules, indent=2)}
    if libraries := _libraries(settings):
        request["libraries"] = libraries
    return request


def databricks_cluster(settings: Settings) -> dict[str, Any]:
    """What a job's JSON takes: `new_cluster` (to be merged with node types and sizes) and the task's `libraries`."""
    settings.plan()
    script = {_script_kind(settings.init_script): {"destination": settings.init_script}}
    cluster = {"spark_env_vars": {**settings.variables, **settings.references}, "init_scripts": [script]}
    return {"new_cluster": cluster, "libraries": _libraries(settings)}


def spark_properties(settings: Settings) -> dict[str, str]:
    """Spark properties for a cluster manager without init scripts: YARN's drivers in cluster mode, and all executors.

    `spark.executorEnv.*` wins over what a node's spark-env.sh says. Secrets are left out: Spark shows its properties.
    """
    variables = marked(settings.plan())
    places = ("spark.executorEnv", "spark.yarn.appMasterEnv")
    return {f"{place}.{name}": value for name, value in variables.items() for place in places}


def emr_configurations(settings: Settings) -> list[dict[str, Any]]:
    """EMR's `--configurations`: spark-env for drivers on the primary node, spark-defaults for YARN's."""
    export = {"Classification": "export", "Properties": marked(settings.plan())}
    return [
        {"Classification": "spark-env", "Properties": {}, "Configurations": [export]},
        {"Classification": "spark-defaults", "Properties": spark_properties(settings)},
    ]


def _libraries(settings: Settings) -> list[dict[str, Any]]:
    """The package as a cluster library, so that it shows in the cluster's page; the init script has installed it before."""
    package = settings.variables.get(config.PACKAGE.name, "")
    file = package.partition("[")[0]  # the script has installed its extras; Databricks takes a plain path
    if file.endswith(".whl"):
        return [{"whl": file}]
    return [{"pypi": {"package": package}}] if package else []


def _script_kind(path: str) -> str:
    for pattern, kind in (
        (r"/Volumes/[^/]+/[^/]+/[^/]+/.+", "volumes"),
        (r"/(Workspace|Shared|Users)/.+", "workspace"),
        (r"abfss://.+", "abfss"),
        (r"s3://.+", "s3"),
        (r"gs://.+", "gcs"),
    ):
        if re.fullmatch(pattern, path):
            return kind
    raise InvalidInput(
        f"The init script's place is '{path}'. Expected a file in a volume (/Volumes/catalog/schema/volume/…), in the workspace "
        "(/Workspace/…), or abfss://, s3://, gs://. DBFS no longer holds init scripts."
    )
