"""A small Spark with Delta inside this process, for a laptop, the demo and the tests. A cluster brings its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from spark_tracking.errors import InvalidState
from spark_tracking.spark.delta_jars import delta_jars, java
from spark_tracking.spark.pythons import check_workers

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def _settings(memory: str) -> dict[str, str]:
    """A quiet local Spark with Delta, classic or Connect."""
    quiet = Path(__file__).with_name("log4j2.properties")
    return {
        "spark.jars": ",".join(map(str, delta_jars())),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.databricks.delta.snapshotPartitions": "2",  # 50 by default: 50 tasks for each look at a table
        "spark.sql.shuffle.partitions": "2",
        "spark.driver.memory": memory,
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={quiet.as_uri()}",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }


def local_spark(
    app: str = "spark-tracking", *, cores: int = 2, memory: str = "1g", connect: bool = False, settings: Mapping[str, str] | None = None
) -> SparkSession:
    """Start a local Spark with Delta, or return the session that already runs.

    Workers use this very Python. The JVM takes the environment as it is now: what a Spark plan should see (such as
    `MLFLOW_TRACKING_URI`) must be set before.

    Args:
        memory: the JVM's heap, as Spark writes it (`512m`, `2g`).
        connect: start a Spark Connect server and return its client; needs `pyspark[connect]`.
        settings: further Spark settings, which win over ours.

    Raises:
        InvalidState: Java or delta-spark is missing, or the session that runs already lacks Delta or this Python.
        Unavailable: Delta's jars could not be downloaded.

    Example:
        >>> spark = local_spark()
        >>> spark.range(3).write.format("delta").save("/tmp/three")
    """
    from pyspark.sql import SparkSession

    java()
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    master = f"local[{cores}]"
    builder = SparkSession.builder.appName(app)
    builder = builder.remote(master) if connect else builder.master(master)
    for name, value in {**_settings(memory), **(settings or {})}.items():
        builder = builder.config(name, value)
    with _notices_dropped():
        session = builder.getOrCreate()
    check_workers(session)  # one that ran already may have been started otherwise
    if "DeltaSparkSessionExtension" not in str(session.conf.get("spark.sql.extensions", "")):
        raise InvalidState("The session that runs already was started without Delta. Stop it (spark.stop()), and call local_spark() again.")
    return session


# Lines that no option turns off and on which nobody can act: Spark asks the JVM for an incubator module on every start, and
# its linear algebra looks for a native library before it takes its own.
_NOTICES = ("^WARNING: Using incubator modules: jdk.incubator.vector$", "^netlib-[a-z]*: JNI_OnLoad: dlopen(.*) failed")


@contextmanager
def _notices_dropped() -> Iterator[None]:
    """A JVM started in here has its stderr go through grep, which drops `_NOTICES` and passes on the rest while it lives."""
    grep = shutil.which("grep")
    if grep is None:
        yield
        return
    original = os.dup(2)
    command = [grep, "--line-buffered", "-v", *(part for notice in _NOTICES for part in ("-e", notice))]
    # In a session of its own, so that Ctrl-C does not end it before the JVM has said its last words.
    notices = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=original, start_new_session=True)
    assert notices.stdin is not None
    try:
        os.dup2(notices.stdin.fileno(), 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
        notices.stdin.close()
