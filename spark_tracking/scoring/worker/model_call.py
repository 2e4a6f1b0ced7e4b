"""Arrow rows in, predictions out: what both strategies have in the worker."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.errors import InvalidInput, InvalidState
from spark_tracking.scoring.worker.model_cache import ModelCopy, load
from spark_tracking.scoring.worker.outputs import WrongRowCount, to_array
from spark_tracking.spark.worker import settle

Nulls = Literal["model", "skip", "error"]
OnError = Literal["fail", "null", "report"]

_CALL_SECONDS, _CALL_BYTES, _CALL_BATCHES = 0.1, 16 << 20, 8
"""What a model's call in the UDF should take, and what it gets at most."""


@dataclass(frozen=True)
class ModelCall:
    """How workers call a model. Small, and pickled with the function; the model is loaded on the first call.

    Attributes:
        names: the signature's input names, or None without a signature; `required`: how many of them must be there.
        result: Arrow type of a prediction.
        zone: Spark's session time zone.
        method: the model's method; anything but `predict` is one of the native flavour's.
        nulls: `model`: hand them over; `skip`: such a row's prediction is null; `error`.
        on_error: `fail`: the job fails; `null`: the row's prediction is null; `report`: the error becomes data.
        casts: Arrow types of inputs that whole numbers are cast to, where that loses nothing.

    Example:
        >>> call.score(pa.table({"x": [1.0, 2.0]})).to_pylist()
        [2.0, 4.0]
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
    casts: Mapping[str, str] = field(default_factory=dict)

    def score(self, table: pa.Table) -> pa.Array:
        """One prediction per row; with `report`, one struct of `prediction` and `error`.

        Raises:
            InvalidState: the model failed (and `on_error="fail"`), or rows have nulls (and `nulls="error"`).
            WrongRowCount: the model did not return one prediction per row.
        """
        complete = None if self.nulls == "model" else self._complete(table)
        values, errors = self._scored(table if complete is None else table.take(complete))
        if complete is not None:
            back = pc.index_in(pa.array(range(table.num_rows), pa.int64()), value_set=complete)
            values, errors = values.take(back), errors.take(back)
        return pa.StructArray.from_arrays([values, errors], names=["prediction", "error"]) if self.on_error == "report" else values

    def _complete(self, table: pa.Table) -> pa.Array | None:
        """Which rows have no nulls; None if that is all."""
        holes = [name for name in table.column_names if table[name].null_count]
        if not holes:
            return None
        if self.nulls == "error":
            raise InvalidState(
                f"Rows to score have nulls in: {', '.join(holes)}. Filter them (where=), or pass nulls='skip' or nulls='model'."
            )
        complete = pc.is_valid(table[holes[0]])
        for name in holes[1:]:
            complete = pc.and_(complete, pc.is_valid(table[name]))
        return pc.indices_nonzero(complete.combine_chunks()).cast(pa.int64())

    def _scored(self, table: pa.Table) -> tuple[pa.Array, pa.Array]:
        """Predictions and errors. A batch that fails is halved until the rows that fail are alone."""
        if table.num_rows == 0:
            return pa.nulls(0, self.result), pa.nulls(0, pa.string())
        model = load(self.copy)  # outside the try: a model that does not load is no row's fault
        try:
            values = self._predicted(model, table)
            return values, pa.nulls(len(values), pa.string())
        except WrongRowCount:
            raise
        except Exception as error:
            if self.on_error == "fail":
                if isinstance(error, (InvalidInput, InvalidState)):  # ours, of the result type, the method or a cast
                    raise
                raise InvalidState(
                    f"The model {self.copy.label} failed on a batch of {table.num_rows} rows: {_words(error)}. "
                    "Pass on_error='null' or 'report' to keep the other rows."
                ) from error
            if table.num_rows == 1:
                return pa.nulls(1, self.result), pa.array([_words(error)], pa.string())
        half = table.num_rows // 2
        halves = zip(self._scored(table.slice(0, half)), self._scored(table.slice(half)), strict=True)
        values, errors = (pa.concat_arrays(both) for both in halves)
        return values, errors

    def _predicted(self, model: Any, table: pa.Table) -> pa.Array:
        frame = to_frame(self._cast(table))
        if self.method == "predict":
            result = model.predict(frame, params=dict(self.params)) if self.params else model.predict(frame)
        else:
            if self.names is not None:
                frame = frame[[name for name in self.names if name in frame.columns]]
            result = self._native_method(model)(frame, **(self.params or {}))
        return to_array(result, self.result, table.num_rows, self.zone)

    def _cast(self, table: pa.Table) -> pa.Table:
        """Whole numbers as the floats that the model wants, exactly."""
        for place, column in enumerate(table.schema):
            if column.name in self.casts and pa.types.is_integer(column.type):
                wanted = pa.type_for_alias(self.casts[column.name])
                try:
                    table = table.set_column(place, column.name, table.column(place).cast(wanted))
                except pa.ArrowInvalid:  # its words hold the number
                    raise InvalidState(
                        f"The column '{column.name}' ({column.type}) has whole numbers that the model's {wanted} does not hold exactly. "
                        "Cast it in the source if rounding is right, or log the model with a signature that says long."
                    ) from None
        return table

    def _native_method(self, model: Any) -> Any:
        """A method of the object that was logged, such as an sklearn estimator's `predict_proba`."""
        try:
            native = model.get_raw_model()
        except (NotImplementedError, AttributeError):
            native = model.unwrap_python_model()
        method = getattr(native, self.method, None)
        if callable(method):
            return method
        there = [name for name in dir(native) if not name.startswith("_") and callable(getattr(type(native), name, None))]
        near = get_close_matches(self.method, there, n=3) or [
            name for name in there if name.startswith(("predict", "decision", "transform"))
        ]
        raise InvalidInput(
            f"The model {self.copy.label} ({type(native).__name__}) has no method '{self.method}'. It has: {', '.join(near or there[:20])}."
        )

    def arguments(self, arrays: tuple[pa.Array, ...]) -> pa.Table:
        """A UDF's arguments as a table: a struct by its own field names, columns by the signature's, in its order.

        Raises:
            InvalidInput: fewer columns than the signature requires.
        """
        if len(arrays) == 1 and pa.types.is_struct(arrays[0].type):
            return pa.Table.from_arrays(arrays[0].flatten(), names=[field.name for field in arrays[0].type])
        if self.names is None:
            return pa.Table.from_arrays(list(arrays), names=[str(i) for i in range(len(arrays))])
        if len(arrays) < self.required:
            raise InvalidInput(
                f"The model {self.copy.label} needs {self.required} columns ({', '.join(self.names)}) but got {len(arrays)} unnamed ones. "
                "Pass them in this order, or as a struct."
            )
        names = self.names[: len(arrays)]
        return pa.Table.from_arrays(list(arrays[: len(names)]), names=list(names))


def _words(error: Exception) -> str:
    """What a model's error says, in one line; of MLflow's refusal of a table without the rows that it quotes."""
    text = " ".join(str(error).split())
    if text.startswith("Failed to enforce schema of data"):
        text = text.rpartition("Error: ")[2]
    return f"{type(error).__name__}: {text[:1000].rstrip('.')}"


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Arrow columns as pandas, by the rules of Spark's pandas UDFs: local times without zone, dates as objects, maps as dicts,
    integers with nulls as floats with NaN."""
    frame = table.to_pandas(date_as_object=True, maps_as_pydicts="strict", coerce_temporal_nanoseconds=True, ignore_metadata=True)
    for column in table.schema:
        if pa.types.is_timestamp(column.type) and column.type.tz:
            frame[column.name] = frame[column.name].dt.tz_localize(None)
    return frame


def score_batches(call: ModelCall, batches: Iterator[Any]) -> Iterator[pa.Array]:
    """The body of the Arrow UDF: per batch one array, or a tuple of arrays where it was called with several columns.

    A call of a model costs milliseconds however few the rows, so that several batches go in one call where the model is quick.
    """
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # its warnings per batch would fill the executors' logs
    together, waiting = 1, []
    for arrays in batches:
        waiting.append(call.arguments(arrays if isinstance(arrays, tuple) else (arrays,)))
        if len(waiting) < together and sum(table.nbytes for table in waiting) < _CALL_BYTES:
            continue
        begin = time.monotonic()
        answer = call.score(pa.concat_tables(waiting))
        quick = _CALL_SECONDS / max(time.monotonic() - begin, 1e-3)
        together, waiting = max(1, min(_CALL_BATCHES, int(len(waiting) * quick))), []
        yield answer
    if waiting:
        yield call.score(pa.concat_tables(waiting))
    settle()


def score_pandas(call: ModelCall, batches: Iterator[Any]) -> Iterator[Any]:
    """The body of the pandas UDF, for Spark before 4.1; here NaN and null are one."""

    def array(column: pd.DataFrame | pd.Series) -> pa.Array:
        if isinstance(column, pd.DataFrame):
            return pa.RecordBatch.from_pandas(column, preserve_index=False).to_struct_array()
        return pa.Array.from_pandas(column)

    for columns in batches:
        arrays = tuple(map(array, columns if isinstance(columns, tuple) else (columns,)))
        result = next(score_batches(call, iter([arrays])))
        if pa.types.is_struct(result.type):
            result = pa.Table.from_arrays(result.flatten(), names=[field.name for field in result.type])
        else:
            result = pa.chunked_array([result])
        yield result.to_pandas(maps_as_pydicts="strict")
    settle()
