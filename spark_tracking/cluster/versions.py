"""Which versions are installed, and which of them do not go together."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version

from spark_tracking.cluster.findings import ERROR, OK, WARNING, Finding
from spark_tracking.errors import InvalidState
from spark_tracking.spark.delta_jars import MIN_JAVA, found_java

PACKAGES = (
    *("spark-tracking", "mlflow-skinny", "mlflow", "pyspark", "delta-spark"),
    *("deltalake", "datafusion", "pyarrow", "pandas", "azureml-mlflow"),
)


def versions() -> dict[str, str]:
    """The installed versions of what has to go together, by package."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def examine_versions() -> Iterator[Finding]:
    """Installed packages, a Databricks runtime that is too old, and Java."""
    found = versions()
    yield Finding(OK, "versions", ", ".join(f"{name} {number}" for name, number in found.items()))
    for name in ("spark-tracking", "mlflow", "delta-spark", "azureml-mlflow"):
        if name in found:
            for text in unmet(name, found):
                # delta-spark and MLflow declare what they were tested with; most patch releases beyond that work.
                level = ERROR if name in ("spark-tracking", "azureml-mlflow") else WARNING
                yield Finding(level, "versions", text, "Install versions that go together; `pip check` lists all of them.")
    runtime = os.environ.get("DATABRICKS_RUNTIME_VERSION", "")
    if re.match(r"(1[0-6]|\d)\.", runtime):
        text = (
            f"Databricks Runtime {runtime} has Spark 3.5 and MLflow 2. A notebook with its own MLflow 3 (%pip install spark-tracking) "
            "can use the lake; the cluster-wide start, the Spark data sources and logging from executors do not work."
        )
        yield Finding(ERROR, "runtime", text, "Take Databricks Runtime 17.3 LTS or newer.")
    if "pyspark" in found and not os.environ.get("SPARK_REMOTE"):
        yield _java()


def _java() -> Finding:
    try:
        _, major = found_java()
    except InvalidState:
        text = "No Java was found, which a classic Spark session needs."
        return Finding(WARNING, "Java", text, "Install a JDK 17, or use Spark Connect.")
    fits = major >= MIN_JAVA
    return Finding(OK if fits else ERROR, "Java", f"Java {major}.", "" if fits else "PySpark 4 needs Java 17 or newer; set JAVA_HOME.")


def unmet(name: str, installed: Mapping[str, str]) -> list[str]:
    """What a package declares and the installed versions break, one sentence each; its extras count where they are installed."""
    from packaging.requirements import Requirement

    problems = []
    for text in requires(name) or []:
        needed = Requirement(text)
        extra = next((e for e in ("spark", "azure") if needed.marker and needed.marker.evaluate({"extra": e})), "")
        if needed.marker and not extra and not needed.marker.evaluate({"extra": ""}):
            continue
        have = installed.get(needed.name)
        # The azure extra's limit on MLflow counts only where its plug-in is installed.
        if have is None or (extra == "azure" and "azureml-mlflow" not in installed):
            continue
        if not needed.specifier.contains(have, prereleases=True):
            problems.append(f"{name} {installed.get(name, '')} needs {needed.name}{needed.specifier}, and {have} is installed.")
    return problems
