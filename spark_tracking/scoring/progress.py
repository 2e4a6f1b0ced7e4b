"""A line that says how far a Spark job is: tasks done, rows per second, time left."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from spark_tracking.scoring.ship import is_connect

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_LOOK_SECONDS = 0.5


@contextmanager
def progress(spark: SparkSession, title: str, *, tasks: int, rows: int | None, show: bool | None) -> Iterator[None]:
    """Show the progress of the Spark jobs that this thread starts.

    Args:
        spark: the session.
        title: what is being done.
        tasks: how many tasks there are.
        rows: how many rows, or None if unknown; tasks are taken to be of one size.
        show: None: only where someone looks, on a terminal.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield
        return
    from tqdm.auto import tqdm

    unit, scale = ("rows", rows / tasks) if rows else ("tasks", 1.0)
    with tqdm(total=rows or tasks, desc=title, unit=f" {unit}", unit_scale=True) as bar:

        def done(finished: int) -> None:
            bar.update(max(0, round(min(finished, tasks) * scale) - bar.n))

        with _watch_connect(spark, done) if is_connect(spark) else _watch_classic(spark, done):
            yield
        done(tasks)


@contextmanager
def _watch_classic(spark: SparkSession, done: Callable[[int], None]) -> Iterator[None]:
    """Polls the status of the jobs in this thread's job group; a notebook's own group is left as it is."""
    context = spark.sparkContext
    group = context.getLocalProperty("spark.jobGroup.id")
    if group is None:
        group = f"spark-tracking-{threading.get_ident()}"
        context.setLocalProperty("spark.jobGroup.id", group)
    tracker = context.statusTracker()
    before = set(tracker.getJobIdsForGroup(group))
    stop = threading.Event()

    def finished() -> int:
        jobs = [tracker.getJobInfo(job) for job in set(tracker.getJobIdsForGroup(group)) - before]
        stages = [tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds]
        return sum(stage.numCompletedTasks for stage in stages if stage)

    def look() -> None:
        while not stop.wait(_LOOK_SECONDS):
            done(finished())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if group.startswith("spark-tracking-"):
            context.setLocalProperty("spark.jobGroup.id", None)  # type: ignore[arg-type]


@contextmanager
def _watch_connect(spark: Any, done: Callable[[int], None]) -> Iterator[None]:
    def handler(stages: Any, inflight_tasks: int, operation_id: str, done: bool) -> None:
        report(sum(stage.num_completed_tasks for stage in stages or ()))

    report = done
    spark.registerProgressHandler(handler)
    try:
        yield
    finally:
        spark.removeProgressHandler(handler)
