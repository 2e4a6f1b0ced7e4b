"""`score_table`: a table in, a Delta table of predictions out, in one commit that says where its rows come from."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from spark_tracking.errors import InvalidState
from spark_tracking.scoring.by_files import FilesStrategy, NeedsSpark
from spark_tracking.scoring.by_spark import SparkStrategy
from spark_tracking.scoring.commits import Committed
from spark_tracking.scoring.job import Job, Mode, Request, StrategyName, find_job
from spark_tracking.scoring.result import ScoreResult, record_run
from spark_tracking.scoring.spark_errors import in_a_sentence, require_delta
from spark_tracking.scoring.worker.model_call import Nulls, OnError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType


def score_table(
    spark: SparkSession,
    model_uri: str,
    source: str | DataFrame,
    target: str,
    *,
    where: str | None = None,
    keep: Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    mode: Mode = "append",
    keys: Sequence[str] = (),
    partition_by: Sequence[str] = (),
    strategy: StrategyName = "auto",
    version: int | None = None,
    timestamp: str | dt.datetime | None = None,
    since: Literal["last"] | int | None = None,
    job: str | None = None,
    result_type: DataType | str | None = None,
    prediction: str = "prediction",
    method: str = "predict",
    params: Mapping[str, Any] | None = None,
    nulls: Nulls = "model",
    on_error: OnError = "fail",
    model_columns: bool = False,
    track: bool = False,
    show_progress: bool | None = None,
) -> ScoreResult:
    """Score a table with a logged model into a Delta table, in one commit.

    Args:
        spark: the session, classic or Connect.
        model_uri: any model URI of MLflow. An alias is resolved once: moving it during the job changes nothing in it.
        source: Delta table or Parquet folder by path, table by name, or a DataFrame.
        target: Delta table by path or name; made if it does not exist.
        where: SQL condition on the source's rows.
        keep: source columns that go into the target next to the prediction; None: all.
        inputs: source columns that the model gets; None: those that its signature names, or all where it names none.
        mode: `append`, `overwrite`, `overwrite_partitions` (those that get rows), or `merge` by `keys`.
        keys: for `merge`, the columns that tell rows apart.
        partition_by: kept columns that partition a new target.
        strategy: `files` (workers read and write the tables' files themselves), `udf` (Spark does), or `auto`: `files` where
            the tables allow it. The result says which and why.
        version: version of a Delta source; None: the newest.
        timestamp: instead of a version, as of that time.
        since: `last`: only what the source gained since this job's last run; or a version: what came after it.
        job: the job's name. Work under a name is committed once: running it again for the same source version and, without
            `since`, the same model does nothing. With `since="last"` the name is made from the other arguments if not given.
        result_type: Spark type of the prediction; None: what the signature says.
        prediction: name of its column.
        method: a method of the logged object, such as `predict_proba`.
        params: inference parameters.
        nulls: `model`, `skip` or `error`, as in `score_udf`.
        on_error: `fail`, `null` or `report`; with `report` a column `<prediction>_error` says what failed.
        model_columns: add `model_version` and `scored_at` to each row.
        track: record an MLflow run with the source, the model, row counts and rates.
        show_progress: None: on a terminal.

    Returns:
        What was done. `print` it for a summary.

    Raises:
        NotFound: there is no such model or source.
        InvalidInput: columns are missing or of a wrong type (all are named), or arguments contradict each other.
        InvalidState: `strategy="files"` and the tables do not allow it; or another job changed the same rows.

    Example:
        >>> print(score_table(spark, "models:/wine@champion", "/data/wine", "/data/scored", keep=["id"]))
        6,497 rows scored with wine version 3 into /data/scored version 0 ...
    """
    began = time.monotonic()
    request = Request(
        model_uri=model_uri,
        source=source,
        target=target,
        where=where,
        keep=None if keep is None else _names(keep),
        inputs=None if inputs is None else _names(inputs),
        mode=mode,
        keys=_names(keys),
        partition_by=_names(partition_by),
        strategy=strategy,
        version=version,
        timestamp=timestamp,
        since=since,
        job=job,
        result_type=result_type,
        prediction=prediction,
        method=method,
        params=params,
        nulls=nulls,
        on_error=on_error,
        model_columns=model_columns,
        show_progress=show_progress,
    )
    require_delta(spark)
    found = find_job(spark, request)
    with in_a_sentence(found):
        strategy_used, reason, committed = _run(found)
    result = ScoreResult.of(found, committed, strategy_used, reason, began)
    return replace(result, run_id=record_run(result, found)) if track else result


def _names(given: Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


class Strategy(Protocol):
    """A way to score a job and commit it, once."""

    @property
    def name(self) -> str:
        """As the caller asks for it."""

    def write(self) -> Committed:
        """Score and commit."""


def _run(job: Job) -> tuple[str, str, Committed]:
    """Do a job in the way that suits it; the name of that way, and why."""
    if job.backlog.done:
        return "none", "", Committed(None, 0, 0)
    strategy, reason = _strategy(job)
    return strategy.name, reason, strategy.write()


def _strategy(job: Job) -> tuple[Strategy, str]:
    asked = job.request.strategy
    if asked == "udf":
        return SparkStrategy(job), "asked for"
    try:
        return FilesStrategy.of(job), "asked for" if asked == "files" else "the tables allow it"
    except NeedsSpark as reason:
        if asked == "files":
            raise InvalidState(f"strategy='files' is not possible here: {reason}. Use strategy='auto' or 'udf'.") from reason
        return SparkStrategy(job), str(reason)
