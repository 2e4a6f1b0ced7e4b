"""The scoring job, for schedulers: plain arguments in, a result out. The work is `spark_tracking.scoring`'s."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from spark_tracking.scoring import ScoreResult, score_table

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def score(model_uri: str, source: str, target: str, **options: Any) -> ScoreResult:
    """Score a table in the running Spark session, or in a local one that ends with the job.

    Args:
        model_uri: any model URI of MLflow.
        source: Delta table or Parquet folder by path, or a table by name.
        target: Delta table by path or name.
        options: `score_table`'s keyword arguments.

    Returns:
        What was done, as `score_table` says it.

    Example:
        >>> score("models:/wine@champion", "/data/wine", "/data/scored", since="last", job="nightly").rows
        6497
    """
    with _session() as spark:
        return score_table(spark, model_uri, source, target, **options)


@contextmanager
def _session() -> Iterator[SparkSession]:
    from pyspark.sql import SparkSession

    running = SparkSession.getActiveSession()
    if running is not None:
        yield running
        return
    from spark_tracking.jobs.session import local_spark

    spark = local_spark("spark-tracking score")
    try:
        yield spark
    finally:
        spark.stop()
