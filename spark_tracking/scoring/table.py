"""`score_table`: a table in, a Delta table of predictions out, in one commit that says where its rows come from."""

from __future__ import annotations

import datetime as dt
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from spark_tracking.errors import InvalidInput
from spark_tracking.scoring import spark_path
from spark_tracking.scoring.inputs import check_inputs
from spark_tracking.scoring.model import resolve
from spark_tracking.scoring.predict import Nulls, OnError
from spark_tracking.scoring.source import Place, Source, find_place, find_source
from spark_tracking.scoring.udf import make_plan
from spark_tracking.scoring.work import MODES, STRATEGIES, Mode, Strategy, Work, output_schema

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType

log = logging.getLogger("spark_tracking.scoring")


@dataclass(frozen=True)
class ScoreResult:
    """What a scoring job did.

    Attributes:
        status: `scored`, or `nothing new` where the job had done this work before.
        target: path or name of the target.
        target_version: its Delta version after the commit; None if nothing was committed.
        rows: rows written.
        failed: of these, rows whose error was reported (with `on_error="report"`).
        seconds: wall time of the whole call.
        strategy: `files` or `udf`.
        reason: why this strategy.
        model: the model's name, version, alias, run and digest.
        source, source_version: what was read.
        job: the job's name, if it has one.
    """

    status: Literal["scored", "nothing new"]
    target: str
    target_version: int | None
    rows: int
    failed: int
    seconds: float
    strategy: str
    reason: str
    model: Mapping[str, str | None]
    source: str
    source_version: int | None
    job: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        name = self.model["model_name"]
        model = f"{name} version {self.model['model_version']}" if name else str(self.model["model_uri"])
        if self.status == "nothing new":
            return f"Nothing new in {self.source} for {self.target} (looked for {self.seconds:.1f} s)."
        rate = self.rows / self.seconds if self.seconds else 0.0
        failed = f", {self.failed:,} of them failed" if self.failed else ""
        return (
            f"{self.rows:,} rows scored with {model} into {self.target} version {self.target_version}{failed} "
            f"({self.seconds:.1f} s, {rate:,.0f} rows/s, strategy {self.strategy}: {self.reason})."
        )


def score_table(
    spark: SparkSession,
    model_uri: str,
    source: str | DataFrame,
    target: str,
    *,
    where: str | None = None,
    keep: Sequence[str] | None = None,
    mode: Mode = "append",
    keys: Sequence[str] = (),
    partition_by: Sequence[str] = (),
    strategy: Strategy = "auto",
    version: int | None = None,
    timestamp: str | dt.datetime | None = None,
    result_type: DataType | str | None = None,
    prediction: str = "prediction",
    method: str = "predict",
    params: Mapping[str, Any] | None = None,
    nulls: Nulls = "model",
    on_error: OnError = "fail",
    model_columns: bool = False,
) -> ScoreResult:
    """Score a table with a logged model into a Delta table.

    Args:
        spark: the session, classic or Connect.
        model_uri: any model URI of MLflow. An alias is resolved once: moving it during the job changes nothing in it.
        source: Delta table or Parquet folder by path, table by name, or a DataFrame.
        target: Delta table by path or name; made if it does not exist.
        where: SQL condition on the source's rows.
        keep: source columns that go into the target next to the prediction; None: all.
        mode: `append`, `overwrite`, `overwrite_partitions` (those that get rows), or `merge` by `keys`.
        keys: for `merge`, the columns that tell rows apart.
        partition_by: kept columns that partition a new target.
        strategy: `files`, `udf`, or `auto`, which takes `files` where the tables allow it and says why.
        version: version of a Delta source; None: the newest.
        timestamp: instead of a version, as of that time.
        result_type: Spark type of the prediction; None: what the signature says.
        prediction: name of its column.
        method: a method of the logged object, such as `predict_proba`.
        params: inference parameters.
        nulls: `model`, `skip` or `error`, as in `score_udf`.
        on_error: `fail`, `null` or `report`; with `report` a column `<prediction>_error` says what failed.
        model_columns: add `model_version` and `scored_at` to each row.

    Returns:
        What was done. `print` it for a summary.

    Raises:
        NotFound: there is no such model or source.
        InvalidInput: columns are missing or of a wrong type (all are named), or arguments contradict each other.

    Example:
        >>> print(score_table(spark, "models:/wine@champion", "/data/wine", "/data/scored", keep=["id"]))
        6,497 rows scored with wine version 3 into /data/scored version 0 ...
    """
    began = time.monotonic()
    _check(mode, strategy, keys)
    model = resolve(model_uri)
    found = find_source(spark, source, version, timestamp)
    check_inputs(model, found.df.schema)
    plan, returned = (None, None)
    if not model.is_spark_ml:
        plan, returned = make_plan(spark, model, result_type, method=method, params=params, nulls=nulls, on_error=on_error, scalars=True)
    work = Work(
        model=model,
        source=found,
        target=_target(spark, target),
        where=where,
        keep=_kept(found, keep),
        mode=mode,
        keys=tuple(keys),
        partition_by=tuple(partition_by),
        prediction=prediction,
        plan=plan,
        returned=returned,
        model_columns=model_columns,
        method=method,
        job=None,
        since=None,
        token=uuid.uuid4().hex[:16],
    )
    output_schema(work)
    return _scored(spark, work, began)


def _scored(spark: SparkSession, work: Work, began: float) -> ScoreResult:
    counts = spark_path.write(spark, work, spark_path.predictions(spark, work, work.source.df))
    done = find_place(spark, work.target.text)
    newest = int(spark.sql(f"DESCRIBE HISTORY {done.sql} LIMIT 1").collect()[0]["version"])
    return _result(work, began, "udf", "chosen", target_version=newest, rows=counts["rows"], failed=counts["failed"])


def _result(work: Work, began: float, strategy: str, reason: str, *, target_version: int | None, rows: int, failed: int) -> ScoreResult:
    return ScoreResult(
        status="scored",
        target=work.target.text,
        target_version=target_version,
        rows=rows,
        failed=failed,
        seconds=time.monotonic() - began,
        strategy=strategy,
        reason=reason,
        model=work.model.facts(),
        source=work.source.label,
        source_version=work.source.version,
        job=work.job,
    )


def _check(mode: str, strategy: str, keys: Sequence[str]) -> None:
    if mode not in MODES:
        raise InvalidInput(f"mode='{mode}' is not known. Use one of: {', '.join(MODES)}.")
    if strategy not in STRATEGIES:
        raise InvalidInput(f"strategy='{strategy}' is not known. Use one of: {', '.join(STRATEGIES)}.")
    if (mode == "merge") != bool(keys):
        raise InvalidInput("mode='merge' needs keys=[...], the columns that tell rows apart; no other mode takes them.")


def _target(spark: SparkSession, target: str) -> Place:
    place = find_place(spark, target)
    if place.exists and place.format != "delta":
        raise InvalidInput(f"The target '{target}' exists and is no Delta table but {place.format}. Give another target.")
    return place


def _kept(source: Source, keep: Sequence[str] | None) -> tuple[str, ...]:
    if keep is None:
        return tuple(source.df.columns)
    if missing := [name for name in keep if name not in source.df.columns]:
        raise InvalidInput(f"keep= names columns that {source.label} lacks: {', '.join(missing)}. It has: {', '.join(source.df.columns)}.")
    return tuple(keep)
