"""The doctor, on this process and, with a Spark session, on every executor."""

from __future__ import annotations

import json
import os
import socket
import sys
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from spark_tracking.cluster.doctor import examine, in_time
from spark_tracking.cluster.findings import ERROR, WARNING, Finding, Report
from spark_tracking.cluster.nodes import NodeReport, compare, node_reporter
from spark_tracking.sources.pythons import ADVICE, python_reason, worker_problem

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_SPREAD_SECONDS = 0.4  # a task waits this long, so that the next one goes to another executor
_ANSWER_SECONDS = 180
_PORTS = {"spark": 7077, "sc": 15002}


def doctor(spark: SparkSession | str | None = None, *, read_only: bool = False) -> Report:
    """Say what tracking this process has, by which rule, whether it works, and what to do where it does not.

    Args:
        spark: a session, classic or Connect, whose executors are looked at, too; or the master to start one on ("" for the one of
            Spark's own configuration).
        read_only: do not create (and delete) a run to prove that we may write.

    Example:
        >>> spark_tracking.doctor(spark)                                 # doctest: +SKIP
    """
    findings = list(examine(read_only=read_only))
    if isinstance(spark, str):
        findings += _examine_cluster(spark)
    elif spark is not None:
        findings += _examine_executors(spark)
    return Report(tuple(findings))


def _examine_cluster(master: str) -> list[Finding]:
    try:
        _connect(master)
        return _examine_executors(in_time(lambda: _session(master), _ANSWER_SECONDS))
    except ImportError:
        return [
            Finding(ERROR, "Spark", "pyspark is not installed here.", "Run the doctor where Spark is, or install spark-tracking[spark].")
        ]
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("An error occurred while calling")]
        reason = (lines or [type(error).__name__])[0][:300]
        text = f"No session on {master or 'what Spark is configured for'}: {reason}"
        return [Finding(ERROR, "Spark", text, "Check the master's address, that it runs, and JAVA_HOME.")]


def _connect(master: str) -> None:
    """See that something listens, which Spark's own clients try for minutes."""
    parts = urlsplit(master.split(",")[0])
    if parts.hostname and parts.scheme in _PORTS:
        socket.create_connection((parts.hostname, parts.port or _PORTS[parts.scheme]), timeout=10).close()


def _session(master: str) -> SparkSession:
    """The running session, or one on `master`, or on what Spark's own configuration says."""
    from pyspark.sql import SparkSession

    if master.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("spark-tracking doctor").config("spark.ui.showConsoleProgress", "false")
    builder = builder.config("spark.executor.memory", "512m")  # the default of 1g waits for ever on a cluster of small workers
    if master.startswith("sc://"):
        builder = builder.remote(master)
    elif master:
        builder = builder.master(master)
    return builder.getOrCreate()


def _examine_executors(spark: SparkSession) -> list[Finding]:
    if problem := worker_problem(spark):
        return [Finding(ERROR, "executors", problem, ADVICE)]
    try:
        return _compare_executors(spark)
    except Exception as error:
        if not (reason := python_reason(error)):
            raise
        return [Finding(ERROR, "executors", f"Spark's workers cannot run this process's Python: {reason}", ADVICE)]


def _compare_executors(spark: SparkSession) -> list[Finding]:
    report = node_reporter()
    driver = report()
    driver["environ"]["MLFLOW_TRACKING_URI"] = _tracking_uri()
    expected = _executors(spark)
    seen: dict[str, NodeReport] = {}
    try:
        for tasks in (4, 16, 64):
            seen |= {found["executor"]: found for found in _ask_in_time(spark, report, tasks * max(1, expected))}
            if len(seen) >= expected:
                break
    except TimeoutError:
        text = (
            f"No executor answered within {_ANSWER_SECONDS} s: the cluster has no free resources, or its workers cannot reach this driver."
        )
        return [Finding(ERROR, "executors", text, "See the Spark master's page for free cores and memory, and the network between them.")]
    findings = list(compare(driver, seen))
    if len(seen) < expected:
        text = f"Only {len(seen)} of {expected} executors answered."
        findings.append(Finding(WARNING, "executors", text, "Run the doctor again while the cluster is idle."))
    return findings


def _ask_in_time(spark: SparkSession, report: Any, tasks: int) -> list[NodeReport]:
    """As `_ask`; a job that no executor takes up is given up, since the doctor must not hang where the cluster does."""
    tag = f"spark-tracking-doctor-{uuid.uuid4().hex}"

    def tagged() -> list[NodeReport]:
        spark.addTag(tag)
        return _ask(spark, report, tasks)

    try:
        return in_time(tagged, _ANSWER_SECONDS)
    except TimeoutError:
        spark.interruptTag(tag)
        raise


def _ask(spark: SparkSession, report: Any, tasks: int) -> list[NodeReport]:
    spread = _SPREAD_SECONDS

    def answer(batches: Iterator[Any]) -> Iterator[Any]:
        import json
        import time

        import pandas

        for _ in batches:
            time.sleep(spread)
            yield pandas.DataFrame({"report": [json.dumps(report())]})

    rows = spark.range(0, tasks, 1, tasks).mapInPandas(answer, "report string").collect()
    return [json.loads(row.report) for row in rows]


def _executors(spark: SparkSession) -> int:
    """How many executors a classic session has; 1 where that cannot be known (Connect)."""
    try:
        infos = spark.sparkContext._jsc.sc().statusTracker().getExecutorInfos()
        return max(1, len(infos) - 1)  # the driver counts as one
    except Exception:  # PySparkNotImplementedError in Connect, and what else a platform hides
        return 1


def _tracking_uri() -> str:
    import mlflow

    return str(mlflow.get_tracking_uri())
