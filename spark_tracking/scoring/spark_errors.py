"""What an error of Spark's means here, in a sentence: it comes through py4j or Connect as pages of Java and Python."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pyspark.errors import PySparkException

from spark_tracking import errors
from spark_tracking.errors import InvalidInput, InvalidState

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_tracking.scoring.job import Job

_OURS = re.compile(r"^\s*spark_tracking\.[\w.]+\.(?P<kind>\w+): (?P<words>.+)$", re.MULTILINE)
_NO_DELTA = re.compile(r"DATA_SOURCE_NOT_FOUND|DELTA_CONFIGURE_SPARK_SESSION|Failed to find (the )?data source: delta|delta\.DefaultSource")
_FULL = re.compile(r"No space left on device|Disk quota exceeded")
_CAUSE = re.compile(r"^\s*(?:Caused by: )?(?:[\w$]+\.)+(?P<kind>[\w$]*(?:Exception|Error)): (?P<words>.+)$", re.MULTILINE)

_with_delta: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def one_line(error: Exception | str) -> str:
    """What an error of Spark's says, without its state, plan and stack."""
    return " ".join(str(error).split("SQLSTATE")[0].split())


def require_delta(spark: SparkSession) -> None:
    """Refuse a session that cannot read and write Delta tables; asked once per session.

    Raises:
        InvalidState: says how to get one that can.
    """
    if spark in _with_delta:
        return
    try:
        spark.read.format("delta").load("/spark-tracking/no-such-table").schema  # noqa: B018 - what fails, and how, is the answer
    except Exception as error:  # of py4j, Connect or Spark
        if _NO_DELTA.search(str(error)):
            raise InvalidState(
                "This Spark session has no Delta Lake, which score_table writes. On a laptop start it with spark_tracking.local_spark(); "
                "elsewhere give it the package delta-spark, spark.sql.extensions=io.delta.sql.DeltaSparkSessionExtension and "
                "spark.sql.catalog.spark_catalog=org.apache.spark.sql.delta.catalog.DeltaCatalog (for Spark Connect: its server)."
            ) from error
    _with_delta[spark] = True


@contextmanager
def in_a_sentence(job: Job) -> Iterator[None]:
    """An error of Spark's as our sentence, or as what our code in a worker said; others as they are.

    Delta's come through py4j, Connect or delta-spark as exceptions of different classes, whose texts name Delta's own.
    """
    try:
        yield
    except errors.SparkTrackingError:
        raise
    except Exception as error:
        text = str(error)
        if said := _OURS.search(text):
            raise getattr(errors, said["kind"], InvalidState)(said["words"]) from error
        if isinstance(error, PySparkException) or type(error).__module__.startswith("py4j."):
            raise _sentence(job, text) from error
        raise


def _sentence(job: Job, text: str) -> errors.SparkTrackingError:
    target = job.target.text
    if "DELTA_MULTIPLE_SOURCE_ROW_MATCHING" in text:
        keys = ", ".join(job.request.keys)
        return InvalidInput(f"Several rows to score have the same {keys}. Give keys= that tell them apart, or use where=.")
    if "DELTA_FAILED_TO_MERGE_FIELDS" in text:
        there, written = job.target.empty(job.spark).schema.simpleString(), job.output.simpleString()
        return InvalidInput(
            f"The target '{target}' has columns of other types: {there}. To be written are: {written}. "
            "Set result_type=, or use mode='overwrite'."
        )
    if full := _FULL.search(text):
        return InvalidState(f"Writing into '{target}' failed: {full[0]}. Nothing was committed. Make room there and run it again.")
    causes = list(_CAUSE.finditer(text))
    cause = f"{causes[-1]['kind']}: {causes[-1]['words']}" if causes else text
    return InvalidState(f"Spark failed while it scored into '{target}': {one_line(cause)[:500]}")
