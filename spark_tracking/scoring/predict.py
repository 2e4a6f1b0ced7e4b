"""Arrow batches in, predictions out: the part that the UDF and the file-native path share, in the worker."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.errors import InvalidInput, InvalidState
from spark_tracking.scoring.types import WrongRowCount, to_array
from spark_tracking.scoring.worker import ModelCopy, load
from spark_tracking.spark.worker import settle

Nulls = Literal["model", "skip", "error"]
OnError = Literal["fail", "null", "report"]
_CALL_SECONDS, _CALL_BYTES, _CALL_BATCHES = 0.1, 16 << 20, 8
"""What a model's call in the UDF should take, and what it gets at most."""
NULLS: tuple[Nulls, ...] = ("model", "skip", "error")
ON_ERROR: tuple[OnError, ...] = ("fail", "null", "report")


@dataclass(frozen=True)
class Plan:
    """All that a worker needs to score batches. Small, and pickled with the function.

    Attributes:
        copy: where the model is.
        names: the signature's input names, or None without a signature.
        required: how many of them must be there.
        result: Arrow type of a prediction.
        zone: Spark's session time zone.
        method: the model's method; anything but `predict` is one of the native flavour's.
        params: inference parameters.
        nulls: `model`: hand them over; `skip`: such a row's prediction is null; `error`.
        on_error: `fail`: the job fails; `null`: the row's prediction is null; `report`: the error becomes data.
        casts: Arrow types of inputs that whole numbers are cast to, where that loses nothing.
    """

    copy: ModelCopy
    names: tuple[str, ...] | None
    required: int
    result: pa.DataType
    zone: str = "UTC"
    method: str = "predict"
    params: Mapping[str, Any] | None = None
    nulls: Nulls = "model"
    on_error: OnError = "fail"
    casts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def output(self) -> pa.DataType:
        """What the UDF returns: the prediction, or with `report` a struct of prediction and error."""
        if self.on_error != "report":
            return self.result
        return pa.struct([("prediction", self.result), ("error", pa.string())])


class Predictor:
    """Scores batches with the model of a plan; the model is loaded on the first one.

    Example:
        >>> Predictor(plan).score(pa.table({"x": [1.0, 2.0]})).to_pylist()
        [2.0, 4.0]
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def score(self, table: pa.Table) -> pa.Array:
        """One prediction per row, of the plan's output type.

        Raises:
            InvalidState: the model failed (and `on_error="fail"`), or rows have nulls (and `nulls="error"`).
            WrongRowCount: the model did not return one prediction per row.
        """
        kept = None
        if self.plan.nulls != "model" and (kept := self._without_nulls(table)) is not None:
            table = table.take(kept)
        values, errors = self._pieces(table)
        if kept is not None:
            back = pc.index_in(pa.array(range(self._rows), pa.int64()), value_set=kept)
            values, errors = values.take(back), errors.take(back)
        if self.plan.on_error != "report":
            return values
        return pa.StructArray.from_arrays([values, errors], fields=list(self.plan.output))

    def _without_nulls(self, table: pa.Table) -> pa.Array | None:
        self._rows = table.num_rows
        holes = [name for name in table.column_names if table[name].null_count]
        if not holes:
            return None
        if self.plan.nulls == "error":
            raise InvalidState(
                f"Rows to score have nulls in: {', '.join(holes)}. Filter them (where=), or pass nulls='skip' or nulls='model'."
            )
        complete = pc.is_valid(table[holes[0]])
        for name in holes[1:]:
            complete = pc.and_(complete, pc.is_valid(table[name]))
        return pc.indices_nonzero(complete.combine_chunks()).cast(pa.int64())

    def _pieces(self, table: pa.Table) -> tuple[pa.Array, pa.Array]:
        """Predictions and errors. A batch that fails is halved until the rows that fail are alone."""
        if table.num_rows == 0:
            return pa.nulls(0, self.plan.result), pa.nulls(0, pa.string())
        model = load(self.plan.copy)  # outside the try: a model that does not load is no row's fault
        try:
            values = self._predict(model, table)
            return values, pa.nulls(len(values), pa.string())
        except WrongRowCount:
            raise
        except Exception as error:
            if self.plan.on_error == "fail":
                if isinstance(error, (InvalidInput, InvalidState)):  # ours, of the result type, the method or a cast
                    raise
                raise InvalidState(
                    f"The model {self.plan.copy.label} failed on a batch of {table.num_rows} rows: {words(error)}. "
                    "Pass on_error='null' or 'report' to keep the other rows."
                ) from error
            if table.num_rows == 1:
                return pa.nulls(1, self.plan.result), pa.array([words(error)], pa.string())
        half = table.num_rows // 2
        halves = [self._pieces(table.slice(0, half)), self._pieces(table.slice(half))]
        return pa.concat_arrays([values for values, _ in halves]), pa.concat_arrays([errors for _, errors in halves])

    def _predict(self, model: Any, table: pa.Table) -> pa.Array:
        plan = self.plan
        frame = to_frame(cast_safely(table, plan.casts))
        if plan.method == "predict":
            result = model.predict(frame, params=dict(plan.params)) if plan.params else model.predict(frame)
        else:
            if plan.names is not None:
                frame = frame[[name for name in plan.names if name in frame.columns]]
            result = native_method(model, plan)(frame, **(plan.params or {}))
        return to_array(result, plan.result, table.num_rows, plan.zone)


def native_method(model: Any, plan: Plan) -> Any:
    """A method of the object that was logged, such as an sklearn estimator's `predict_proba`.

    Raises:
        InvalidInput: the object has no such method.
    """
    try:
        native = model.get_raw_model()
    except (NotImplementedError, AttributeError):
        native = model.unwrap_python_model()
    method = getattr(native, plan.method, None)
    if not callable(method):
        there = [name for name in dir(native) if not name.startswith("_") and callable(getattr(type(native), name, None))]
        near = get_close_matches(plan.method, there, n=3) or [
            name for name in there if name.startswith(("predict", "decision", "transform"))
        ]
        raise InvalidInput(
            f"The model {plan.copy.label} ({type(native).__name__}) has no method '{plan.method}'. It has: {', '.join(near or there[:20])}."
        )
    return method


def cast_safely(table: pa.Table, casts: Mapping[str, str]) -> pa.Table:
    """Whole numbers as the floats that the model wants, exactly.

    Raises:
        InvalidState: a number has no exact float; the column is named.
    """
    for place, column in enumerate(table.schema):
        if column.name in casts and pa.types.is_integer(column.type):
            wanted = pa.type_for_alias(casts[column.name])
            try:
                table = table.set_column(place, column.name, table.column(place).cast(wanted))
            except pa.ArrowInvalid:  # its words hold the number
                raise InvalidState(
                    f"The column '{column.name}' ({column.type}) has whole numbers that the model's {wanted} does not hold exactly. Cast "
                    "it in the source if rounding is right, or log the model with a signature that says long."
                ) from None
    return table


def words(error: Exception) -> str:
    """What a model's error says, in one line; of MLflow's refusal of a table without the rows that it quotes."""
    text = " ".join(str(error).split())
    if text.startswith("Failed to enforce schema of data"):
        text = text.rpartition("Error: ")[2]
    return f"{type(error).__name__}: {text[:1000].rstrip('.')}"


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Arrow columns as pandas, by the rules of Spark's pandas UDFs: local times without zone, dates as objects, maps as dicts,
    integers with nulls as floats with NaN."""
    frame = table.to_pandas(date_as_object=True, maps_as_pydicts="strict", coerce_temporal_nanoseconds=True, ignore_metadata=True)
    for field in table.schema:
        if pa.types.is_timestamp(field.type) and field.type.tz:
            frame[field.name] = frame[field.name].dt.tz_localize(None)
    return frame


def score_batches(plan: Plan, batches: Iterator[Any]) -> Iterator[pa.Array]:
    """The body of the Arrow UDF.

    A call of a model costs milliseconds however few the rows, so that several batches go in one call where the model is quick.

    Args:
        plan: what to do.
        batches: per batch one array, or a tuple of arrays where the UDF was called with several columns.
    """
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # its warnings per batch would fill the executors' logs
    predictor, together, waiting = Predictor(plan), 1, []
    for arrays in batches:
        waiting.append(named(plan, arrays if isinstance(arrays, tuple) else (arrays,)))
        if len(waiting) < together and sum(table.nbytes for table in waiting) < _CALL_BYTES:
            continue
        begin = time.monotonic()
        answer = predictor.score(pa.concat_tables(waiting))
        quick = _CALL_SECONDS / max(time.monotonic() - begin, 1e-3)
        together, waiting = max(1, min(_CALL_BATCHES, int(len(waiting) * quick))), []
        yield answer
    if waiting:
        yield predictor.score(pa.concat_tables(waiting))
    settle()


def score_pandas(plan: Plan, batches: Iterator[Any]) -> Iterator[Any]:
    """The body of the pandas UDF, for Spark before 4.1; here NaN and null are one."""
    for values in batches:
        columns = values if isinstance(values, tuple) else (values,)
        arrays = [
            pa.RecordBatch.from_pandas(column, preserve_index=False).to_struct_array()
            if isinstance(column, pd.DataFrame)
            else pa.Array.from_pandas(column)
            for column in columns
        ]
        result = next(score_batches(plan, iter([tuple(arrays)])))
        if not pa.types.is_struct(result.type):
            yield pa.chunked_array([result]).to_pandas(maps_as_pydicts="strict")
        else:
            yield pa.Table.from_arrays(result.flatten(), names=[field.name for field in result.type]).to_pandas(maps_as_pydicts="strict")
    settle()


def named(plan: Plan, arrays: tuple[pa.Array, ...]) -> pa.Table:
    """The UDF's arguments as a table: a struct by its own field names, columns by the signature's, in its order.

    Raises:
        InvalidInput: fewer columns than the signature requires.
    """
    if len(arrays) == 1 and pa.types.is_struct(arrays[0].type):
        names = [field.name for field in arrays[0].type]
        return pa.Table.from_arrays(arrays[0].flatten(), names=names)
    if plan.names is None:
        return pa.Table.from_arrays(list(arrays), names=[str(i) for i in range(len(arrays))])
    if len(arrays) < plan.required:
        raise InvalidInput(
            f"The model {plan.copy.label} needs {plan.required} columns ({', '.join(plan.names)}) but got {len(arrays)} unnamed ones. "
            "Pass them in this order, or as a struct."
        )
    arrays = arrays[: len(plan.names)]
    return pa.Table.from_arrays(list(arrays), names=list(plan.names[: len(arrays)]))
