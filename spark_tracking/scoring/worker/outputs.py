"""From what models return to Arrow columns of the asked type.

What fits which type follows `mlflow.pyfunc.spark_udf`: of several columns the leftmost that fits, an array takes all of
them, a struct takes them by name, and NaN becomes null. Timestamps, dates, decimals, binary, maps and nested structs come on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.errors import InvalidInput, InvalidState

_SEQUENCES = (list, tuple, np.ndarray)


class WrongRowCount(InvalidState):
    """A model returned more or fewer predictions than it got rows: which belongs to which is lost."""


def to_array(result: Any, wanted: pa.DataType, rows: int, zone: str = "UTC") -> pa.Array:
    """A model's output (numpy, pandas, a list, a dict of columns, a sparse matrix, a tensor, a scalar) as one Arrow array.

    Timestamps that name no time zone are in `zone`, Spark's session time zone.

    Raises:
        WrongRowCount: there are not exactly `rows` predictions.
        InvalidInput: no part of the output fits the type.

    Example:
        >>> to_array(np.array([1, 2]), pa.float64(), 2).to_pylist()
        [1.0, 2.0]
    """
    result = _plain(result)
    counts = {len(values) for values in result.values()} if isinstance(result, Mapping) else {len(result)}
    if counts != {rows} and (counts or rows):
        count = counts.pop() if len(counts) == 1 else -1 if counts else 0
        raise WrongRowCount(f"The model returned {count} predictions for {rows} rows. A model must return one per row, in order.")
    try:
        return _convert(result, wanted, zone)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, TypeError, ValueError) as error:
        raise InvalidInput(f"The model's output ({_describe(result)}) does not fit the result type {wanted}: {error}") from error


def _plain(result: Any) -> Any:
    if hasattr(result, "detach"):  # a torch tensor
        return result.detach().cpu().numpy()
    if hasattr(result, "toarray"):  # a sparse matrix
        return result.toarray()
    if isinstance(result, np.ndarray) and result.ndim == 0:
        return result.reshape(1)
    if result is None or np.isscalar(result):
        return [result]
    if isinstance(result, Mapping):
        return {name: _plain(values) for name, values in result.items()}
    if isinstance(result, Sequence):
        return [row.model_dump() if hasattr(row, "model_dump") else row for row in result]
    return result


def _convert(result: Any, wanted: pa.DataType, zone: str) -> pa.Array:
    if pa.types.is_struct(wanted):
        return _struct(result, wanted, zone)
    if pa.types.is_list(wanted) or pa.types.is_large_list(wanted):
        return _list(result, wanted)
    if pa.types.is_map(wanted):
        if isinstance(result, (pd.DataFrame, Mapping)):  # the column if there is one, else each row as a map
            frame = _frame(result)
            column = isinstance(result, pd.DataFrame) and frame.shape[1] == 1
            result = frame.iloc[:, 0] if column else frame.to_dict("records")
        return _values(pd.Series(list(result), dtype=object), wanted, zone)
    if isinstance(result, np.ndarray) and result.ndim == 1 and _fits(result.dtype, wanted):
        return _values(result, wanted, zone)
    frame = _frame(result)
    for objects in (False, True):  # a column of Python objects may hold anything: only where no other fits
        for position in range(frame.shape[1]):
            if _fits(frame.dtypes.iloc[position], wanted, objects=objects):
                return _values(frame.iloc[:, position], wanted, zone)
    raise InvalidInput(
        f"The model's output ({_describe(result)}) has no column that fits the result type {wanted}. "
        "Give a result_type that fits; 'string' and 'array<string>' always do."
    )


def _frame(result: Any) -> pd.DataFrame:
    if isinstance(result, pd.DataFrame):
        return result
    if isinstance(result, Mapping):
        return pd.DataFrame({name: list(values) if np.ndim(values) > 1 else values for name, values in result.items()})
    if isinstance(result, np.ndarray) and result.ndim > 2:
        return pd.DataFrame({0: list(result)})
    return pd.DataFrame(result)


def _fits(dtype: Any, wanted: pa.DataType, *, objects: bool = False) -> bool:
    kinds = pd.api.types
    if pa.types.is_boolean(wanted):
        fits = kinds.is_bool_dtype(dtype)
    elif pa.types.is_integer(wanted):
        fits = kinds.is_integer_dtype(dtype)
    elif pa.types.is_floating(wanted):
        fits = kinds.is_numeric_dtype(dtype) and not kinds.is_bool_dtype(dtype)
    else:
        return True
    return bool(fits or (objects and kinds.is_object_dtype(dtype)))


def _values(values: Any, wanted: pa.DataType, zone: str) -> pa.Array:
    """One column of values as Arrow; NaN becomes null."""
    if pa.types.is_string(wanted) or pa.types.is_large_string(wanted):
        return pa.array([None if value is None or value is pd.NA else str(value) for value in values], wanted)
    if pa.types.is_timestamp(wanted) and wanted.tz:
        times = pd.to_datetime(pd.Series(values).reset_index(drop=True))
        times = times.dt.tz_localize(zone, ambiguous=False) if times.dt.tz is None else times
        return pa.array(times, from_pandas=True).cast(wanted, safe=False)
    if isinstance(values, list) or pd.api.types.is_object_dtype(values.dtype):
        return pa.array([_pairs(value, wanted) for value in values], wanted, from_pandas=True)
    array = pa.array(values, from_pandas=True)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    if array.type == wanted:
        return array
    return pc.cast(array, options=pc.CastOptions(wanted, allow_float_truncate=True, allow_time_truncate=True))


def _pairs(value: Any, wanted: pa.DataType) -> Any:
    """Arrow takes a map as a list of pairs; the rest of nested Python values as they are."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if pa.types.is_map(wanted):
        return [(key, _pairs(inner, wanted.item_type)) for key, inner in dict(value).items()]
    if pa.types.is_list(wanted):
        return [_pairs(inner, wanted.value_type) for inner in value]
    if pa.types.is_struct(wanted):
        record = value.model_dump() if hasattr(value, "model_dump") else value
        return {field.name: _pairs(record[field.name], field.type) for field in wanted}
    if pa.types.is_string(wanted):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def _list(result: Any, wanted: pa.DataType) -> pa.Array:
    element = wanted.value_type
    if isinstance(result, (pd.DataFrame, Mapping)):
        frame = _frame(result)
        of_lists = frame.shape[1] == 1 and pd.api.types.is_object_dtype(frame.dtypes.iloc[0])
        if of_lists and isinstance(frame.iloc[0, 0] if len(frame) else [], _SEQUENCES):
            result = list(frame.iloc[:, 0])
        else:
            fitting = [i for i, dtype in enumerate(frame.dtypes) if _fits(dtype, element)]
            if not fitting:
                raise InvalidInput(
                    f"None of the output's columns ({_describe(result)}) fits an array of {element}. Give a result_type that fits."
                )
            result = frame.iloc[:, fitting].to_numpy()
    if isinstance(result, np.ndarray) and result.ndim == 2 and result.dtype != object and not pa.types.is_nested(element):
        flat = _values(np.ascontiguousarray(result).reshape(-1), element, "UTC")
        offsets = np.arange(result.shape[0] + 1, dtype=np.int32) * result.shape[1]
        return pa.ListArray.from_arrays(pa.array(offsets), flat, type=wanted)
    rows = [row if row is None or isinstance(row, _SEQUENCES) else [row] for row in result]
    return pa.array([_pairs(row, wanted) for row in rows], wanted, from_pandas=True)


def _struct(result: Any, wanted: pa.StructType, zone: str) -> pa.Array:
    frame = _frame(result)
    by_name = {str(name): position for position, name in enumerate(frame.columns)}
    columns = []
    for place, field in enumerate(wanted):
        if field.name in by_name:
            place = by_name[field.name]
        elif isinstance(result, (pd.DataFrame, Mapping)) or frame.shape[1] != wanted.num_fields:
            raise InvalidInput(
                f"The model's output has no field '{field.name}'; it has: {', '.join(by_name)}. Give a result_type that fits."
            )
        values = frame.iloc[:, place]
        columns.append(_list(list(values), field.type) if pa.types.is_list(field.type) else _values(values, field.type, zone))
    return pa.StructArray.from_arrays(columns, fields=list(wanted))


def _describe(result: Any) -> str:
    if isinstance(result, (pd.DataFrame, Mapping)):
        frame = _frame(result)
        return "columns " + ", ".join(f"{name} {dtype}" for name, dtype in zip(frame.columns, frame.dtypes, strict=True))
    if isinstance(result, (np.ndarray, pd.Series)):
        return f"{type(result).__name__} of {result.dtype} with shape {result.shape}"
    first = type(result[0]).__name__ if len(result) else "nothing"
    return f"{type(result).__name__} of {first}"
