"""Which versions are installed, and which of them do not go together."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version

from spark_tracking.cluster.findings import ERROR, OK, WARNING, Finding

PACKAGES = (
    "spark-tracking",
    "mlflow-skinny",
    "mlflow",
    "pyspark",
    "delta-spark",
    "deltalake",
    "datafusion",
    "pyarrow",
    "pandas",
    "azureml-mlflow",
)


def examine_versions() -> Iterator[Finding]:
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


def versions() -> dict[str, str]:
    """The installed versions of what has to go together, by package."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


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


def examine_java() -> Iterator[Finding]:
    """PySpark 4 runs on Java 17 and newer."""
    if "pyspark" not in versions() or os.environ.get("SPARK_REMOTE"):
        return
    java = os.path.join(os.environ["JAVA_HOME"], "bin", "java") if os.environ.get("JAVA_HOME") else "java"
    try:
        text = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=20, check=True).stderr
        major = int(re.search(r'version "(?:1\.)?(\d+)', text)[1])  # type: ignore[index]
    except (OSError, subprocess.SubprocessError, TypeError, ValueError):
        yield Finding(WARNING, "Java", "No Java was found, which a classic Spark session needs.", "Install a JDK 17, or use Spark Connect.")
        return
    level = OK if major >= 17 else ERROR
    yield Finding(level, "Java", f"Java {major}.", "" if level == OK else "PySpark 4 needs Java 17 or newer; set JAVA_HOME.")
