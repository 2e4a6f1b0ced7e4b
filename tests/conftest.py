"""What every wing's tests share: a clean environment, an empty lake's URI, and one small Spark with Delta."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Variables by which a developer's own shell would reach into a test, or a test out of it. HOME stays: the jars' cache is there.
_FOREIGN = ("MLFLOW_", "SPARK_TRACKING_", "DATABRICKS_", "AWS_", "AZURE_", "GOOGLE_", "SPARK_CONF_DIR", "SPARK_REMOTE", "SPARK_HOME")
_KEPT = ("AWS_CA_BUNDLE",)

# At import, before any fixture: the JVM and each test's subprocesses inherit what they find here.
for _name in [name for name in os.environ if name.startswith(_FOREIGN) and name not in _KEPT]:
    del os.environ[_name]
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"  # without it a missing credential costs a look-up of seconds
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever has a Spark by a fixture is marked so; tests that start one of their own say it themselves."""
    for item in items:
        if "spark" in getattr(item, "fixturenames", ()):
            item.add_marker("spark")


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path) -> Iterator[None]:
    """Each test starts in a folder of its own with MLflow as a new process has it, and leaves nothing set behind.

    It takes no monkeypatch, so that it is the last to tidy up: what a monkeypatch puts back may be what MLflow had set itself.
    """
    import mlflow
    from mlflow.utils.autologging_utils import autologging_is_disabled

    folder, before = os.getcwd(), dict(os.environ)
    os.chdir(tmp_path)
    yield
    while mlflow.active_run():
        mlflow.end_run("KILLED")
    if not autologging_is_disabled("sklearn"):
        mlflow.sklearn.autolog(disable=True)
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    mlflow.tracking.fluent._active_experiment_id = None
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    os.chdir(folder)


@pytest.fixture
def lake_uri(tmp_path: Path) -> str:
    """The tracking URI of a lake that does not exist yet."""
    return f"delta://{tmp_path / 'lake'}"


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The one local Spark of the test run: Delta, two cores, no UI, its warehouse in a scratch folder."""
    from spark_tracking.spark.local import local_spark

    warehouse = tmp_path_factory.mktemp("warehouse")
    session = local_spark("spark-tracking-tests", settings={"spark.sql.warehouse.dir": str(warehouse)})
    yield session
    session.stop()
