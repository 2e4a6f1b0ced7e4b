"""The processes of a cluster's nodes, described by themselves and compared with the driver's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from spark_tracking.cluster.findings import ERROR, OK, WARNING, Finding
from spark_tracking.cluster.versions import PACKAGES

NodeReport = dict[str, Any]


def node_reporter() -> Callable[[], NodeReport]:
    """A function that describes the process it runs in, for tasks on nodes that may not have this package.

    It is made here, inside a function, so that cloudpickle sends it by value. It imports what it needs and holds no secret.
    """
    packages = PACKAGES

    def report() -> NodeReport:
        import os
        import platform
        import re
        import socket
        import urllib.request
        from importlib.metadata import PackageNotFoundError, version

        def parent(pid: int) -> int:
            try:
                with open(f"/proc/{pid}/stat") as stat:
                    return int(stat.read().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                return 0

        found = {"python": ".".join(platform.python_version_tuple()[:2])}
        for name in packages:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
        names = (
            "MLFLOW_TRACKING_URI",
            "MLFLOW_REGISTRY_URI",
            "SPARK_TRACKING_EXPERIMENT",
            "SPARK_TRACKING_CONFIGURED",
            "SPARK_TRACKING_PROBLEM",
        )
        environ = {name: os.environ.get(name, "") for name in names}
        file = os.environ.get("SPARK_TRACKING_ENV_FILE", "")
        held = ""
        try:
            with open(file) as text:
                match = re.search(r"^export SPARK_TRACKING_CONFIGURED=(\w+)$", text.read(), re.MULTILINE)
                held = match[1] if match else ""
        except OSError:
            pass
        reached = ""
        if environ["MLFLOW_TRACKING_URI"].startswith("http"):
            try:
                urllib.request.urlopen(environ["MLFLOW_TRACKING_URI"] + "/health", timeout=8).close()
            except urllib.request.HTTPError:
                pass  # it answers; whether it lets us in is the driver's finding
            except OSError as error:
                reached = type(error).__name__ + ": " + str(error)
        elif environ["MLFLOW_TRACKING_URI"].startswith("delta:///"):
            root = environ["MLFLOW_TRACKING_URI"][len("delta://") :]
            reached = "" if os.access(root, os.W_OK) else f"{root} cannot be written from this node"
        # A Python worker is a child of a daemon, which is a child of the executor's JVM.
        executor = f"{socket.gethostname()}/{parent(os.getppid())}"
        return {"executor": executor, "environ": environ, "file": file, "held": held, "unreachable": reached, "versions": found}

    return report


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
                yield Finding(
                    WARNING, "executor", text, "Install the same on every node; PYSPARK_PYTHON chooses the Python of the executors."
                )
    wanted = driver["environ"]["MLFLOW_TRACKING_URI"]
    for uri, names in uris.items():
        if uri != wanted:
            text = f"{', '.join(names)}: tracks to {uri or 'nowhere in particular'}, the driver to {wanted or 'nowhere'}."
            fix = "Run the init script on that node and restart its worker; or log through spark_tracking.executor_run."
            yield Finding(ERROR, "executor", text, fix)
    if set(uris) == {wanted}:
        yield Finding(OK, "executors", f"{len(executors)} executors track to {wanted or 'nowhere in particular'}, as the driver does.")
