"""Logging from inside Spark tasks, through the driver's server, run and credentials.

    tracking = spark_tracking.executor_tracking()           # on the driver, inside mlflow.start_run()

    def fit(group):                                         # in a task: applyInPandas, mapInPandas, foreachPartition, a pandas UDF
        with spark_tracking.executor_run(tracking, key=group.name) as run:
            run.log_params({"depth": 3})
            for step, loss in enumerate(losses):
                run.log_metric("loss", loss, step)

What is logged is kept in memory and sent when the block ends, also when it fails: a search, a creation, a batch for each 1,000
points and an end are all that the server sees of a task.

**Once.** A unit of work is `key` within one `executor_tracking()`. When its block ends well, its child run is the only one: a later
attempt of it (a retried task, a second look at a lazy DataFrame) runs its code and logs nothing, and earlier attempts' failed or
abandoned runs are deleted. Of two speculative copies that end together one deletes itself. So a key must name the work: two
different pieces of work under one key are one run.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import mlflow
from mlflow import MlflowClient, entities
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils import validation

from spark_tracking.cluster import place
from spark_tracking.cluster.unattended import never_prompt
from spark_tracking.config import temporary_variables
from spark_tracking.errors import InvalidState
from spark_tracking.here import credentials

UNIT_TAG = "spark_tracking.unit"
_BATCH = 1000  # MLflow's limit of points, params and tags in a call; of the latter two 100 each
_EARLY = 100_000  # points in memory before some are sent ahead of the end
_QUIET = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}  # a line in a task's log, and a call for it


@dataclass(frozen=True)
class ExecutorTracking:
    """What tasks take along from the driver: small, picklable, without a connection. Made by `executor_tracking`.

    Child runs go to `experiment_id`, below `run_id`, with the driver's `tags` for user and source. `token` names this fan-out, as a part
    of each unit's identity; `started` (milliseconds since 1970) is the time of points in the driver's run, so that a retry's are the same.
    """

    uri: str = field(repr=False)  # a database's may hold a password
    experiment_id: str
    run_id: str
    tags: Mapping[str, str]
    token: str
    started: int
    _environment: Mapping[str, str] = field(repr=False, default_factory=dict)


def executor_tracking(run_id: str | None = None) -> ExecutorTracking:
    """Take what tasks need from the driver: server, credentials, experiment, user and source, and the run, by default the active one.

    Raises:
        InvalidState: no run is active and none is given.
        MlflowException: the run does not exist.

    Example:
        >>> with mlflow.start_run():                                     # doctest: +SKIP
        ...     tracking = executor_tracking()
        ...     frame.groupby("store").applyInPandas(fit, schema).collect()
    """
    if run_id is None:
        active = mlflow.active_run()
        if active is None:
            raise InvalidState("No run is active. Call executor_tracking() inside `with mlflow.start_run():`, or pass a run_id.")
        run_id = active.info.run_id
    run = mlflow.get_run(run_id)
    kept = ("mlflow.user", "mlflow.source.", "mlflow.databricks.", "spark_tracking.")
    tags = {name: text for name, text in {**resolve_tags(), **run.data.tags}.items() if name.startswith(kept)}
    return ExecutorTracking(
        uri=mlflow.get_tracking_uri(),
        experiment_id=run.info.experiment_id,
        run_id=run.info.run_id,
        tags=tags,
        token=uuid.uuid4().hex,
        started=int(time.time() * 1000),
        _environment=credentials(mlflow.get_tracking_uri()),
    )


class TaskRun:
    """A run as a task sees it: everything is kept until the block ends. Made by `executor_run`.

    Attributes:
        run_id: the run that this unit's values are found in.
        logged_before: this unit's work is already in that run; what this attempt logs is dropped.
    """

    def __init__(self, client: MlflowClient, run_id: str, *, logged_before: bool = False, timestamp: int | None = None) -> None:
        self.run_id = run_id
        self.logged_before = logged_before
        self._client = client
        self._timestamp = timestamp
        self._metrics: list[entities.Metric] = []
        self._params: dict[str, entities.Param] = {}
        self._tags: dict[str, entities.RunTag] = {}

    # Values are checked here, where the line that is wrong can be seen, and not in the batch.

    def log_metric(self, key: str, value: float, step: int = 0, timestamp: int | None = None) -> None:
        """Log one point. `timestamp`: milliseconds since 1970, now by default."""
        if timestamp is None:
            timestamp = self._timestamp if self._timestamp is not None else int(time.time() * 1000)
        point = entities.Metric(key, float(value), timestamp, step)
        validation._validate_metric(key, point.value, timestamp, step)
        self._metrics.append(point)
        if len(self._metrics) >= _EARLY:
            self.flush()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0, timestamp: int | None = None) -> None:
        """Log several metrics at one step."""
        for key, value in metrics.items():
            self.log_metric(key, value, step, timestamp)

    def log_param(self, key: str, value: object) -> None:
        """Log a param; in the driver's run a param can have one value only, as always in MLflow."""
        validation._validate_param(key, str(value))
        self._params[key] = entities.Param(key, str(value))

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log several params."""
        for key, value in params.items():
            self.log_param(key, value)

    def set_tag(self, key: str, value: object) -> None:
        """Set a tag."""
        validation._validate_tag(key, str(value))
        self._tags[key] = entities.RunTag(key, str(value))

    def log_artifact(self, local_path: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """Upload a file now; not where an earlier attempt of this unit has ended well."""
        if not self.logged_before:
            self._client.log_artifact(self.run_id, os.fspath(local_path), artifact_path)

    def flush(self) -> None:
        """Send what has been logged so far; the end of the block does it by itself."""
        metrics, params, tags = self._metrics, list(self._params.values()), list(self._tags.values())
        self._metrics, self._params, self._tags = [], {}, {}
        while (metrics or params or tags) and not self.logged_before:
            room = _BATCH - len(params[:100]) - len(tags[:100])
            self._client.log_batch(self.run_id, metrics[:room], params[:100], tags[:100])
            metrics, params, tags = metrics[room:], params[100:], tags[100:]


@contextmanager
def executor_run(tracking: ExecutorTracking, key: object = None, *, child: bool = True, name: str | None = None) -> Iterator[TaskRun]:
    """Log from a task, once however often the task is tried.

    Args:
        tracking: what `executor_tracking` gave on the driver.
        key: names the unit of work (a group's value, a combination of parameters); by default stage and partition.
        child: a child run of the driver's run; False logs into the driver's run itself.
        name: the child run's name; by default the key.

    Yields:
        The run to log to; metrics are sent when the block ends, also when it fails.

    Raises:
        MlflowException: the server refuses or cannot be reached.

    Example:
        >>> def fit(frame):                                              # doctest: +SKIP
        ...     with executor_run(tracking, key=frame["store"].iloc[0]) as run:
        ...         run.log_metric("rmse", train(frame))
    """
    if tracking.uri.startswith("azureml:"):
        never_prompt()
    with temporary_variables({"MLFLOW_TRACKING_URI": tracking.uri, **_QUIET, **tracking._environment}):
        client = mlflow.MlflowClient(tracking.uri, registry_uri=tracking.uri)
        if not child:
            yield from _into_driver_run(client, tracking)
        else:
            yield from _into_child_run(client, tracking, _identity(tracking, key), name or (str(key) if key is not None else None))


def _into_driver_run(client: MlflowClient, tracking: ExecutorTracking) -> Iterator[TaskRun]:
    """Points of a retried task have the same time, so that the server finds them to be the same points."""
    run = TaskRun(client, tracking.run_id, timestamp=tracking.started)
    try:
        yield run
    finally:
        run.flush()


def _into_child_run(client: MlflowClient, tracking: ExecutorTracking, unit: str, name: str | None) -> Iterator[TaskRun]:
    before = [run.info for run in _attempts(client, tracking, unit)]
    if finished := [info.run_id for info in before if info.status == "FINISHED"]:
        yield TaskRun(client, finished[0], logged_before=True)
        return
    # A first attempt that saw no other need not look again: a second one does at its end, whichever of them ends earlier.
    task = place.task()
    alone = not before and (task is None or task.attemptNumber() == 0)
    tags = {**tracking.tags, "mlflow.parentRunId": tracking.run_id, UNIT_TAG: unit}
    if task_name := place.task_name():
        tags["spark_tracking.task"] = task_name
    run = TaskRun(client, client.create_run(tracking.experiment_id, tags=tags, run_name=name).info.run_id)
    try:
        yield run
    except BaseException:
        with suppress(MlflowException):  # the task's own error is the one to see
            _end(client, tracking, unit, run, "FAILED", alone)
        raise
    _end(client, tracking, unit, run, "FINISHED", alone)


def _end(client: MlflowClient, tracking: ExecutorTracking, unit: str, run: TaskRun, status: str, alone: bool) -> None:
    """Send the rest and end the run; a run that a faster copy of this task has deleted is left alone."""
    try:
        run.flush()
        client.set_terminated(run.run_id, status)
    except MlflowException:
        if client.get_run(run.run_id).info.lifecycle_stage != "deleted":
            raise
    if not alone:
        _settle(client, tracking, unit, run)


def _settle(client: MlflowClient, tracking: ExecutorTracking, unit: str, mine: TaskRun) -> None:
    """Of all attempts of a unit one stays: the first that finished, else this one, which is the latest to fail."""
    attempts = [run.info for run in _attempts(client, tracking, unit)]
    finished = [info for info in attempts if info.status == "FINISHED"]
    if finished:
        mine.run_id = min(finished, key=lambda info: (info.end_time, info.run_id)).run_id
    for info in attempts:
        # One that is still running may be the original of this speculative copy: only a finished run ends its right to be.
        if info.run_id != mine.run_id and (finished or info.status == "FAILED"):
            client.delete_run(info.run_id)


def _attempts(client: MlflowClient, tracking: ExecutorTracking, unit: str) -> list[entities.Run]:
    return list(client.search_runs([tracking.experiment_id], f"tags.`{UNIT_TAG}` = '{unit}'", max_results=100))


def _identity(tracking: ExecutorTracking, key: object) -> str:
    """32 hex digits that are the same for each attempt of a unit."""
    task = place.task()
    if key is None:
        key = ("partition", task.stageId(), task.partitionId()) if task is not None else ("process", os.getpid())
    return hashlib.sha256(f"{tracking.token}\0{type(key).__name__}\0{key!r}".encode()).hexdigest()[:32]
