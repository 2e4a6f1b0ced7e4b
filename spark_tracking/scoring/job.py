"""A scoring job: what the caller asks for, and the same with all that it names found and checked."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyspark.errors import AnalysisException
from pyspark.sql.types import ArrayType, DataType, DoubleType, StringType, StructField, StructType, TimestampType

from spark_tracking.errors import InvalidInput
from spark_tracking.masking import masked
from spark_tracking.scoring.incremental import Backlog, backlog
from spark_tracking.scoring.model import ResolvedModel, resolve
from spark_tracking.scoring.signature import check_inputs, input_names, parse_type
from spark_tracking.scoring.spark_errors import one_line
from spark_tracking.scoring.tables import PinnedSource, TableRef, find_table, pin_source
from spark_tracking.scoring.udf import check_choice, model_call, refuse
from spark_tracking.scoring.worker.model_call import ModelCall, Nulls, OnError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Mode = Literal["append", "overwrite", "overwrite_partitions", "merge"]
StrategyName = Literal["auto", "files", "udf"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `score_table`'s caller asks for: its arguments, of which none contradicts another."""

    model_uri: str
    source: str | DataFrame
    target: str
    where: str | None
    keep: tuple[str, ...] | None
    inputs: tuple[str, ...] | None
    mode: Mode
    keys: tuple[str, ...]
    partition_by: tuple[str, ...]
    strategy: StrategyName
    version: int | None
    timestamp: str | dt.datetime | None
    since: Literal["last"] | int | None
    job: str | None
    result_type: DataType | str | None
    prediction: str
    method: str
    params: Mapping[str, Any] | None
    nulls: Nulls
    on_error: OnError
    model_columns: bool
    show_progress: bool | None

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, Mode)
        check_choice("strategy", self.strategy, StrategyName)
        if (self.mode == "merge") != bool(self.keys):
            raise InvalidInput("mode='merge' needs keys=[...], the columns that tell rows apart; no other mode takes them.")
        if self.mode == "overwrite" and self.since is not None:
            raise InvalidInput(
                f"mode='overwrite' with since={self.since!r} leaves only the newest rows in the target. Use 'append' or 'merge'."
            )

    @property
    def error_column(self) -> str | None:
        """Where errors go that become data; None where they do not."""
        return f"{self.prediction}_error" if self.on_error == "report" else None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request with all that it names found: what both strategies are handed.

    Attributes:
        keep, inputs: the source columns that go into the target, and those that the model gets.
        call: how workers call the model; a Spark ML model has none.
        prediction: Spark type of the prediction.
        output: the Spark schema of what is written.
        backlog: which of the source's rows are to be scored.
        token: names this attempt, in its files and its commit.
        started: when it began (UTC).
    """

    spark: SparkSession
    request: Request
    model: ResolvedModel
    source: PinnedSource
    target: TableRef
    keep: tuple[str, ...]
    inputs: tuple[str, ...]
    call: ModelCall | None
    prediction: DataType
    output: StructType
    backlog: Backlog
    token: str
    started: dt.datetime

    @property
    def constants(self) -> dict[str, Any]:
        """The columns that say who scored and when: the registered version or the start of the model's digest, and the job's begin."""
        if not self.request.model_columns:
            return {}
        return {
            "model_version": f"{self.model.name}/{self.model.version}" if self.model.name else self.model.digest,
            "scored_at": self.started,
        }

    def facts(self, strategy: str) -> dict[str, Any]:
        """What the commit says of where its rows come from."""
        return {
            **self.model.facts(),
            "source": masked(self.source.label),
            "source_version": self.source.version,
            "since_version": self.backlog.since,
            "where": self.request.where,
            "job": self.backlog.job,
            "mode": self.request.mode,
            "strategy": strategy,
            "token": self.token,
        }


def find_job(spark: SparkSession, request: Request) -> Job:
    """Find what a request names.

    Raises:
        NotFound: there is no such model or source.
        InvalidInput: columns are missing or of a wrong type (all are named), or something cannot be asked of these.
        InvalidState: the source lost or changed rows that an append cannot follow.
    """
    model = resolve(request.model_uri)
    source = pin_source(spark, request.source, request.version, request.timestamp)
    columns = source.df.schema
    check_inputs(model, columns)
    try:
        if request.where is not None:
            source.df.where(request.where).schema  # noqa: B018 - on Connect it is what asks
    except AnalysisException as error:
        raise InvalidInput(f"where='{request.where}' is no condition on the rows of {source.label}: {one_line(error)}") from error
    call, prediction = _call(spark, model, request)
    target = _target(spark, request, source)
    keep = _columns(source, "keep", request.keep, columns.names)
    inputs = _columns(source, "inputs", request.inputs, input_names(model, columns))
    return Job(
        spark=spark,
        request=request,
        model=model,
        source=source,
        target=target,
        keep=keep,
        inputs=inputs,
        call=call,
        prediction=prediction,
        output=_output(request, columns, keep, prediction),
        backlog=backlog(request, model, source, target, keep),
        token=uuid.uuid4().hex[:16],
        started=dt.datetime.now(dt.timezone.utc),
    )


def _call(spark: SparkSession, model: ResolvedModel, request: Request) -> tuple[ModelCall | None, DataType]:
    heeded: dict[str, Any] = {"nulls": request.nulls, "on_error": request.on_error, "params": request.params}
    if not model.is_spark_ml:
        return model_call(spark, model, request.result_type, method=request.method, scalars=True, **heeded)
    refuse("A Spark ML model scores by its own transform, which has no", **heeded)
    if request.result_type is not None:
        return None, parse_type(request.result_type)
    return None, DoubleType() if request.method == "predict" else ArrayType(DoubleType())


def _target(spark: SparkSession, request: Request, source: PinnedSource) -> TableRef:
    target, text = find_table(spark, request.target), request.target
    if target.exists and target.format != "delta":
        raise InvalidInput(f"The target '{text}' exists and is no Delta table but {target.format}. Give another target.")
    if not target.exists and target.is_path and target.location and Path(target.location).is_file():
        raise InvalidInput(f"The target '{text}' is a file. Give the folder of a Delta table, or one that does not exist yet.")
    same = target.exists and source.table is not None and source.table.path == target.path
    if same and request.mode in ("append", "overwrite_partitions"):
        raise InvalidInput(f"'{text}' is source and target, so mode='{request.mode}' would mix rows with themselves. Give another target.")
    return target


def _columns(source: PinnedSource, argument: str, given: tuple[str, ...] | None, default: Sequence[str]) -> tuple[str, ...]:
    there, names = source.df.columns, tuple(default) if given is None else given
    if missing := [name for name in names if name not in there]:
        raise InvalidInput(f"{argument}= names columns that {source.label} lacks: {', '.join(missing)}. It has: {', '.join(there)}.")
    return names


def _output(request: Request, columns: StructType, keep: tuple[str, ...], prediction: DataType) -> StructType:
    fields = [StructField(name, columns[name].dataType) for name in keep]
    fields.append(StructField(request.prediction, prediction))
    if request.error_column:
        fields.append(StructField(request.error_column, StringType()))
    if request.model_columns:
        fields += [StructField("model_version", StringType()), StructField("scored_at", TimestampType())]
    names = [field.name for field in fields]
    lower = [name.lower() for name in names]
    if doubled := sorted({name for name in lower if lower.count(name) > 1}):
        raise InvalidInput(f"The target would have two columns named {', '.join(doubled)}. Choose another prediction= name, or set keep=.")
    for argument, given in (("keys", request.keys), ("partition_by", request.partition_by)):
        if missing := [name for name in given if name not in names]:
            raise InvalidInput(f"{argument}= names columns that are not written: {', '.join(missing)}. Written are: {', '.join(names)}.")
    return StructType(fields)
