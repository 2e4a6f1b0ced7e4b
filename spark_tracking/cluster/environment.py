"""What a cluster start sets, as text for a shell, a kernel or Spark. `python -m spark_tracking.cluster.environment` is what the
init script calls: exports on standard output, remarks on standard error, and on wrong settings the reason as the last line
and exit code 3."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Mapping
from importlib.util import find_spec

from spark_tracking import config
from spark_tracking.address import OBJECT_STORES
from spark_tracking.cluster import settings
from spark_tracking.cluster.settings import Plan
from spark_tracking.cluster.unattended import never_prompt
from spark_tracking.masking import masked

WRONG_SETTINGS = 3
"""Exit code for settings that cannot be right."""


def plan_for(environ: Mapping[str, str] | None = None) -> Plan:
    """The plan for this cluster: `settings.resolve`, which asks Azure for a missing region, and what it needs is here.

    Raises:
        InvalidSetting, InvalidUri: as `settings.resolve`.
        InvalidState: what the destination needs is not installed, or its plug-in goes not with this MLflow.
        Unavailable: Azure could not be asked for the region.

    Example:
        >>> plan_for({"SPARK_TRACKING_URI": "databricks"}).variables
        {'MLFLOW_TRACKING_URI': 'databricks'}
    """
    plan = settings.resolve(environ, find_region=_find_region)
    if plan.destination.kind == "azureml":
        from spark_tracking.cluster.azureml import check_plugin

        check_plugin()
    extra = plan.destination.scheme.removeprefix("delta+")
    if extra in OBJECT_STORES and find_spec("obstore") is None:
        from spark_tracking.errors import InvalidState  # only here: it imports MLflow, which takes seconds

        raise InvalidState(
            f"A lake on {extra}:// needs the package obstore. Put [{extra}] behind {config.PACKAGE.name}: 'spark-tracking[{extra}]', "
            f"or a wheel's path with [{extra}]."
        )
    return plan


def apply(environ: Mapping[str, str] | None = None) -> Plan:
    """Set this process as a cluster start sets each of a cluster's processes, and return what was set.

    What code of this process said before (`mlflow.set_tracking_uri`) gives way; what it says later wins. Raises as `plan_for`, and then
    nothing is set.
    """
    plan = plan_for(environ)
    if mlflow := sys.modules.get("mlflow"):
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
    if config.CONFIGURED.get():  # then the registry here was set by an earlier start, for an earlier server
        os.environ.pop("MLFLOW_REGISTRY_URI", None)
    os.environ.pop(config.PROBLEM.name, None)
    os.environ.update(marked(plan))
    if plan.destination.kind == "azureml":
        never_prompt()
    return plan


def marked(plan: Plan) -> dict[str, str]:
    """The variables of a plan with twelve hex digits that name them: a process started with others is out of date."""
    text = "\0".join(f"{name}={value}" for name, value in sorted(plan.variables.items()))
    return {**plan.variables, config.CONFIGURED.name: hashlib.sha256(text.encode()).hexdigest()[:12]}


def exports(plan: Plan) -> str:
    """Lines for a POSIX shell, ending with a line break."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in marked(plan).items())


def _find_region(subscription: str, group: str, workspace: str) -> str:
    from spark_tracking.cluster.azureml import find_region

    return find_region(subscription, group, workspace)


def main() -> int:
    """Print the exports for this process's settings; the init script's half in Python."""
    try:
        plan = plan_for()
    except Exception as error:
        print(masked(" ".join((str(error) or repr(error)).split())), file=sys.stderr)
        return WRONG_SETTINGS
    for note in plan.notes:
        print(masked(f"note: {note}"), file=sys.stderr)
    print(exports(plan), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
