"""Where this process runs: user, job, notebook, cluster. Spark and Databricks are asked if they are there, and never imported."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit


def task() -> Any | None:
    """The `TaskContext` of the Spark task that this code runs in, or None on a driver or outside Spark."""
    pyspark = sys.modules.get("pyspark")
    return pyspark.TaskContext.get() if pyspark and hasattr(pyspark, "TaskContext") else None


def task_name() -> str | None:
    """Stage, partition and attempt of that task, in words."""
    running = task()
    if running is None:
        return None
    return f"stage {running.stageId()}, partition {running.partitionId()}, attempt {running.attemptNumber()}"


def user() -> str:
    """Who runs this: Databricks' user, the server's log-in, the user who submitted the Spark application, or the system's."""
    from mlflow.tracking.context.default_context import _get_user
    from mlflow.utils.credentials import read_mlflow_creds

    return _databricks_user() or read_mlflow_creds().username or os.environ.get("SPARK_USER") or str(_get_user())


def notebook() -> str | None:
    """The notebook's path on Databricks, its file name in Jupyter, or None."""
    from mlflow.tracking.context import jupyter_notebook_context as jupyter
    from mlflow.utils import databricks_utils

    if databricks_utils.is_in_databricks_notebook():
        return databricks_utils.get_notebook_path() or None
    name = jupyter._get_notebook_name() if jupyter._is_in_jupyter_notebook() else None
    return PurePosixPath(name).stem if name else None


def job() -> str | None:
    """The job: its id on Databricks, else the Spark application's name, else the script's; None inside a task."""
    from mlflow.utils import databricks_utils

    if databricks_utils.is_in_databricks_job() and (number := databricks_utils.get_job_id()):
        return str(number)
    if task() is not None:
        return None
    return application() or _script()


def application() -> str | None:
    """The name that the Spark application was given, where it is more than the script's; None inside a task."""
    name = spark_setting("spark.app.name")
    known = ("pyspark-shell", "PySparkShell", "Databricks Shell", _script(), PurePosixPath(sys.argv[0]).name if sys.argv else "")
    return None if name in known else name


def _script() -> str | None:
    return PurePosixPath(sys.argv[0]).stem if sys.argv and sys.argv[0] not in ("", "-c", "-m") else None


def cluster() -> str | None:
    """The cluster: its id on Databricks, else the Spark master's host; None outside Spark and inside a task."""
    from mlflow.utils import databricks_utils

    if databricks_utils.is_in_databricks_runtime():
        found = os.environ.get("DB_CLUSTER_ID") or databricks_utils.get_cluster_id()
        return str(found) if found else None
    master = spark_setting("spark.master")
    return (urlsplit(master).hostname or master) if master else None


def _databricks_user() -> str | None:
    from mlflow.utils import databricks_utils

    with suppress(Exception):  # a runtime without this context; nothing is lost but a nicer name
        return (databricks_utils.is_in_databricks_runtime() and databricks_utils._get_context_tag("user")) or None
    return None


def spark_setting(name: str) -> str | None:
    """A setting of the session that runs in this process, if there is one."""
    sql = sys.modules.get("pyspark.sql")
    if sql is None or task() is not None:
        return None
    try:
        session = sql.SparkSession.getActiveSession()
        return session.conf.get(name, None) if session is not None else None
    except Exception:  # a stopped session, or a Connect server that hides the setting
        return None
