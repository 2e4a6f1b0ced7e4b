"""`score_table`: a table in, a Delta table of predictions out, in one commit that says where its rows come from."""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spark_tracking.errors import InvalidInput, InvalidState
from spark_tracking.scoring import file_path, incremental, spark_path
from spark_tracking.scoring.inputs import check_inputs, input_names
from spark_tracking.scoring.model import resolve
from spark_tracking.scoring.predict import Nulls, OnError
from spark_tracking.scoring.record import record_run
from spark_tracking.scoring.result import ScoreResult
from spark_tracking.scoring.source import Place, Source, find_place, find_source, one_line
from spark_tracking.scoring.spark_errors import clearer, require_delta
from spark_tracking.scoring.udf import make_plan, parse_type, refuse
from spark_tracking.scoring.work import MODES, STRATEGIES, Mode, Strategy, Work, output_schema

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
    strategy: Strategy = "auto",
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
    keys, partition_by = _names(keys), _names(partition_by)
    _check(mode, strategy, keys, since)
    require_delta(spark)
    model = resolve(model_uri)
    found = find_source(spark, source, version, timestamp)
    check_inputs(model, found.df.schema)
    _check_where(found, where)
    plan, returned = None, None
    if model.is_spark_ml:
        refuse("A Spark ML model scores by its own transform, which has no", nulls=nulls, on_error=on_error, params=params)
        returned = None if result_type is None else parse_type(result_type)
    else:
        plan, returned = make_plan(spark, model, result_type, method=method, params=params, nulls=nulls, on_error=on_error, scalars=True)
    work = Work(
        model=model,
        source=found,
        target=_target(spark, target, found, mode),
        where=where,
        keep=_columns(found, "keep", keep, found.df.columns),
        inputs=_columns(found, "inputs", inputs, input_names(model, found.df.schema)),
        mode=mode,
        keys=keys,
        partition_by=partition_by,
        prediction=prediction,
        plan=plan,
        returned=returned,
        model_columns=model_columns,
        method=method,
        job=job,
        since=None,
        added=None,
        token=uuid.uuid4().hex[:16],
    )
    _check_columns(work)
    pending = incremental.pending(spark, work, since)
    try:
        result = _nothing_new(work) if pending is None else _run(spark, pending, strategy, show_progress)
    except Exception as error:
        if said := clearer(error, target):
            raise said from error
        raise
    result = replace(result, seconds=time.monotonic() - began)
    return record_run(result, work) if track else result


def _run(spark: SparkSession, work: Work, strategy: Strategy, show: bool | None) -> ScoreResult:
    if strategy == "udf":
        return _by_spark(spark, work, "asked for", show)
    found = file_path.examine(spark, work)
    if not isinstance(found, str):
        reason = "asked for" if strategy == "files" else "the tables allow it"
        return _result(work, "files", reason, file_path.run(spark, work, found, show=show))
    if strategy == "files":
        raise InvalidState(f"strategy='files' is not possible here: {found}. Use strategy='auto' or 'udf'.")
    return _by_spark(spark, work, found, show)


def _by_spark(spark: SparkSession, work: Work, reason: str, show: bool | None) -> ScoreResult:
    rows = incremental.added_rows(spark, work) if work.added is not None else work.source.df
    return _result(work, "udf", reason, spark_path.write(spark, work, spark_path.predictions(spark, work, rows), show=show))


def _result(work: Work, strategy: str, reason: str, done: Mapping[str, Any]) -> ScoreResult:
    if done["version"] is None:  # another run of the same job was faster, and this one's commit was left out
        return _nothing_new(work)
    return ScoreResult(
        status="scored",
        target=work.target.text,
        target_version=done["version"],
        rows=done["rows"],
        failed=done["failed"],
        seconds=0.0,
        strategy=strategy,
        reason=reason,
        model=work.model.facts(),
        source=work.source.label,
        source_version=work.source.version,
        job=work.job,
    )


def _nothing_new(work: Work) -> ScoreResult:
    nothing = _result(work, "none", "this job had done this work before", {"version": -1, "rows": 0, "failed": 0})
    return replace(nothing, status="nothing new", target_version=None)


def _check(mode: str, strategy: str, keys: Sequence[str], since: object) -> None:
    if mode not in MODES:
        raise InvalidInput(f"mode='{mode}' is not known. Use one of: {', '.join(MODES)}.")
    if strategy not in STRATEGIES:
        raise InvalidInput(f"strategy='{strategy}' is not known. Use one of: {', '.join(STRATEGIES)}.")
    if (mode == "merge") != bool(keys):
        raise InvalidInput("mode='merge' needs keys=[...], the columns that tell rows apart; no other mode takes them.")
    if mode == "overwrite" and since is not None:
        raise InvalidInput(f"mode='overwrite' with since={since!r} leaves only the newest rows in the target. Use 'append' or 'merge'.")


def _target(spark: SparkSession, target: str, source: Source, mode: Mode) -> Place:
    place = find_place(spark, target)
    if place.exists and place.format != "delta":
        raise InvalidInput(f"The target '{target}' exists and is no Delta table but {place.format}. Give another target.")
    if not place.exists and place.is_path and place.location and Path(place.location).is_file():
        raise InvalidInput(f"The target '{target}' is a file. Give the folder of a Delta table, or one that does not exist yet.")
    same = place.exists and source.place is not None and source.place.path == place.path
    if same and mode in ("append", "overwrite_partitions"):
        raise InvalidInput(f"'{target}' is source and target, so mode='{mode}' would mix rows with themselves. Give another target.")
    return place


def _check_where(source: Source, where: str | None) -> None:
    from pyspark.errors import AnalysisException

    try:
        if where is not None:
            source.df.where(where).schema  # noqa: B018 - on Connect it is what asks
    except AnalysisException as error:
        raise InvalidInput(f"where='{where}' is no condition on the rows of {source.label}: {one_line(error)}") from error


def _check_columns(work: Work) -> None:
    written = output_schema(work).names
    for argument, names in (("keys", work.keys), ("partition_by", work.partition_by)):
        if missing := [name for name in names if name not in written]:
            raise InvalidInput(f"{argument}= names columns that are not written: {', '.join(missing)}. Written are: {', '.join(written)}.")


def _names(given: Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _columns(source: Source, argument: str, given: Sequence[str] | None, default: Sequence[str]) -> tuple[str, ...]:
    there = source.df.columns
    names = _names(default if given is None else given)
    if missing := [name for name in names if name not in there]:
        raise InvalidInput(f"{argument}= names columns that {source.label} lacks: {', '.join(missing)}. It has: {', '.join(there)}.")
    return names
