"""A line that says how far a Spark job is: tasks done, rows per second, time left."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from spark_tracking.spark.session import is_connect

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_LOOK_SECONDS = 0.5


@contextmanager
def progress(spark: SparkSession, title: str, *, rows: int | None, show: bool | None) -> Iterator[None]:
    """Show the progress of the Spark jobs that this thread starts; with `show=None` only where someone looks, on a terminal.

    `rows`: how many in all, of which tasks are taken to have equal shares; None if unknown: tasks are shown.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield
        return
    from tqdm.auto import tqdm

    with tqdm(total=rows, desc=title, unit=" rows" if rows else " tasks", unit_scale=bool(rows)) as bar:

        def done(finished: int, tasks: int) -> None:
            bar.total = rows or tasks
            bar.update(max(0, (rows * finished // max(1, tasks) if rows else finished) - bar.n))

        with _watch_connect(spark, done) if is_connect(spark) else _watch_classic(spark, done):
            yield
        done(1, 1) if rows else done(bar.total or 0, bar.total or 0)


@contextmanager
def _watch_classic(spark: SparkSession, done: Callable[[int, int], None]) -> Iterator[None]:
    """Polls the status of the jobs in this thread's job group; a notebook's own group is left as it is."""
    context = spark.sparkContext
    group = context.getLocalProperty("spark.jobGroup.id")
    if group is None:
        group = f"spark-tracking-{threading.get_ident()}"
        context.setLocalProperty("spark.jobGroup.id", group)
    tracker = context.statusTracker()
    before = set(tracker.getJobIdsForGroup(group))

    def look() -> None:
        jobs = [tracker.getJobInfo(job) for job in set(tracker.getJobIdsForGroup(group)) - before]
        found = [tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds]
        stages = [stage for stage in found if stage]
        done(sum(stage.numCompletedTasks for stage in stages), sum(stage.numTasks for stage in stages))

    try:
        with every(_LOOK_SECONDS, look):
            yield
    finally:
        if group.startswith("spark-tracking-"):
            context.setLocalProperty("spark.jobGroup.id", None)  # type: ignore[arg-type]
    look()  # a short job has ended before the first look


@contextmanager
def every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call something again and again in a thread while the block runs."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(seconds):
            call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _watch_connect(spark: Any, done: Callable[[int, int], None]) -> Iterator[None]:
    def handler(stages: Any, **_: Any) -> None:
        done(sum(stage.num_completed_tasks for stage in stages or ()), sum(stage.num_tasks for stage in stages or ()))

    spark.registerProgressHandler(handler)
    try:
        yield
    finally:
        spark.removeProgressHandler(handler)
