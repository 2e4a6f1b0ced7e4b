"""What kind of session it is, and how a running one or one on a master is had."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_PORTS = {"spark": 7077, "sc": 15002}


def is_connect(session: SparkSession) -> bool:
    """Whether a session is a Spark Connect client."""
    return ".connect." in type(session).__module__


def shares_files(session: SparkSession) -> bool:
    """Whether workers see this process's files for certain: they are children of a JVM on this very machine."""
    return not is_connect(session) and str(session.sparkContext.master).split("[")[0] == "local"


def executors(session: SparkSession) -> int:
    """How many executors a classic session has; 1 where that cannot be known (Connect)."""
    try:
        infos = session.sparkContext._jsc.sc().statusTracker().getExecutorInfos()
        return max(1, len(infos) - 1)  # the driver counts as one
    except Exception:  # PySparkNotImplementedError in Connect, and what else a platform hides
        return 1


@contextmanager
def running_or_local(app: str) -> Iterator[SparkSession]:
    """The running session, or a local one that ends with the block."""
    from pyspark.sql import SparkSession

    running = SparkSession.getActiveSession()
    if running is not None:
        yield running
        return
    from spark_tracking.spark.local import local_spark

    session = local_spark(app)
    try:
        yield session
    finally:
        session.stop()


def see_listening(master: str) -> None:
    """See that something listens at a master, which Spark's own clients try for minutes; OSError where nothing does."""
    parts = urlsplit(master.split(",")[0])
    if parts.hostname and parts.scheme in _PORTS:
        socket.create_connection((parts.hostname, parts.port or _PORTS[parts.scheme]), timeout=10).close()


def open_session(app: str, master: str) -> SparkSession:
    """The running session, or a small one on `master`, or on what Spark's own configuration says."""
    from pyspark.sql import SparkSession

    if master.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName(app).config("spark.ui.showConsoleProgress", "false")
    builder = builder.config("spark.executor.memory", "512m")  # the default of 1g waits for ever on a cluster of small workers
    if master.startswith("sc://"):
        builder = builder.remote(master)
    elif master:
        builder = builder.master(master)
    return builder.getOrCreate()
