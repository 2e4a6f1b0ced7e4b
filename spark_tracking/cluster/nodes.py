"""The processes of a cluster's nodes, described by themselves and compared with the driver's."""

from __future__ import annotations

import os
import platform
import re
import socket
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from spark_tracking.cluster.findings import ERROR, OK, WARNING, Finding
from spark_tracking.cluster.patience import in_time
from spark_tracking.cluster.versions import versions
from spark_tracking.spark.ask import ask
from spark_tracking.spark.pythons import ADVICE, python_reason, worker_problem
from spark_tracking.spark.session import executors, open_session, see_listening

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NodeReport = dict[str, Any]
_VARIABLES = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"),
    *("SPARK_TRACKING_EXPERIMENT", "SPARK_TRACKING_CONFIGURED", "SPARK_TRACKING_PROBLEM"),
)
_SPREAD_SECONDS = 0.4
_ANSWER_SECONDS = 180


def examine_cluster(master: str) -> list[Finding]:
    """Start a session on a master, or on what Spark is configured for (""), and look at its executors."""
    try:
        see_listening(master)
        return examine_executors(in_time(lambda: open_session("spark-tracking doctor", master), _ANSWER_SECONDS))
    except ImportError:
        return [
            Finding(ERROR, "Spark", "pyspark is not installed here.", "Run the doctor where Spark is, or install spark-tracking[spark].")
        ]
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("An error occurred while calling")]
        reason = (lines or [type(error).__name__])[0][:300]
        text = f"No session on {master or 'what Spark is configured for'}: {reason}"
        return [Finding(ERROR, "Spark", text, "Check the master's address, that it runs, and JAVA_HOME.")]


def examine_executors(spark: SparkSession) -> list[Finding]:
    """Look at the executors of a session, classic or Connect."""
    if problem := worker_problem(spark):
        return [Finding(ERROR, "executors", problem, ADVICE)]
    try:
        return list(_compared(spark))
    except Exception as error:
        if not (reason := python_reason(error)):
            raise
        return [Finding(ERROR, "executors", f"Spark's workers cannot run this process's Python: {reason}", ADVICE)]


def _compared(spark: SparkSession) -> Iterator[Finding]:
    import mlflow

    driver = node_report()
    driver["environ"]["MLFLOW_TRACKING_URI"] = str(mlflow.get_tracking_uri())
    expected = executors(spark)
    seen: dict[str, NodeReport] = {}
    try:
        for tasks in (4, 16, 64):
            seen |= {found["executor"]: found for found in _reports(spark, tasks * max(1, expected))}
            if len(seen) >= expected:
                break
    except TimeoutError:
        text = (
            f"No executor answered within {_ANSWER_SECONDS} s: the cluster has no free resources, or its workers cannot reach this driver."
        )
        fix = "See the Spark master's page for free cores and memory, and the network between them."
        yield Finding(ERROR, "executors", text, fix)
        return
    yield from compare(driver, seen)
    if len(seen) < expected:
        text = f"Only {len(seen)} of {expected} executors answered."
        yield Finding(WARNING, "executors", text, "Run the doctor again while the cluster is idle.")


def _reports(spark: SparkSession, tasks: int) -> list[NodeReport]:
    """What nodes say; a job that no executor takes up is given up, since the doctor must not hang where the cluster does."""
    tag = f"spark-tracking-doctor-{uuid.uuid4().hex}"

    def tagged() -> list[NodeReport]:
        spark.addTag(tag)
        return ask(spark, node_report, tasks=tasks, spread=_SPREAD_SECONDS)

    try:
        return in_time(tagged, _ANSWER_SECONDS)
    except TimeoutError:
        spark.interruptTag(tag)
        raise


def node_report() -> NodeReport:
    """What a process says of itself; no secret. Sent to nodes that may not have this package, so it needs Python's own modules alone."""
    environ = {name: os.environ.get(name, "") for name in _VARIABLES}
    file = os.environ.get("SPARK_TRACKING_ENV_FILE", "")
    return {
        # A Python worker is a child of a daemon, which is a child of the executor's JVM.
        "executor": f"{socket.gethostname()}/{_parent(os.getppid())}",
        "environ": environ,
        "file": file,
        "held": fingerprint_in(file),
        "unreachable": _unreachable(environ["MLFLOW_TRACKING_URI"]),
        "versions": {"python": ".".join(platform.python_version_tuple()[:2]), **versions()},
    }


def fingerprint_in(path: str) -> str:
    """Which state of the settings a file of the init script holds; '' without one."""
    try:
        with open(path) as file:
            found = re.search(r"^export SPARK_TRACKING_CONFIGURED=(\w+)$", file.read(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""


def _unreachable(uri: str) -> str:
    """Why this node does not reach a tracking server, or ''."""
    if uri.startswith("http"):
        try:
            urllib.request.urlopen(uri + "/health", timeout=8).close()
        except urllib.request.HTTPError:
            pass  # it answers; whether it lets us in is the driver's finding
        except OSError as error:
            return f"{type(error).__name__}: {error}"
    elif uri.startswith("delta:///"):
        root = uri.removeprefix("delta://")
        return "" if os.access(root, os.W_OK) else f"{root} cannot be written from this node"
    return ""


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return int(stat.read().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def compare(driver: NodeReport, executors: Mapping[str, NodeReport]) -> Iterator[Finding]:
    """What differs between the driver and its executors, each difference with the executors that show it."""
    uris: dict[str, list[str]] = {}
    for name, report in sorted(executors.items()):
        uris.setdefault(report["environ"]["MLFLOW_TRACKING_URI"], []).append(name)
        if problem := report["environ"]["SPARK_TRACKING_PROBLEM"]:
            yield Finding(ERROR, "executor", f"{name}: the start left tracking as it was: {problem}", "Correct the setting and restart.")
        if report["held"] and report["held"] != report["environ"]["SPARK_TRACKING_CONFIGURED"]:
            text = f"{name}: its daemon is older than {report['file']}."
            yield Finding(WARNING, "executor", text, "Restart the Spark worker there; executors have its environment as of its start.")
        if report["unreachable"]:
            yield Finding(ERROR, "executor", f"{name}: {report['unreachable']}", "Check the network, or the mount, from that node.")
        for package in sorted(driver["versions"].keys() | report["versions"].keys()):
            here, there = driver["versions"].get(package), report["versions"].get(package)
            if here != there:
                text = f"{name}: {package} is {there or 'missing'}, on the driver it is {here or 'missing'}."
                fix = "Install the same on every node; PYSPARK_PYTHON chooses the Python of the executors."
                yield Finding(WARNING, "executor", text, fix)
    wanted = driver["environ"]["MLFLOW_TRACKING_URI"]
    for uri, names in uris.items():
        if uri != wanted:
            text = f"{', '.join(names)}: tracks to {uri or 'nowhere in particular'}, the driver to {wanted or 'nowhere'}."
            fix = "Run the init script on that node and restart its worker; or log through spark_tracking.executor_run."
            yield Finding(ERROR, "executor", text, fix)
    if set(uris) == {wanted}:
        yield Finding(OK, "executors", f"{len(executors)} executors track to {wanted or 'nowhere in particular'}, as the driver does.")
