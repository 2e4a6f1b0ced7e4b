"""From what models return to Arrow columns of the asked type, and from a signature to Spark types.

What fits which type follows `mlflow.pyfunc.spark_udf`: of several columns the leftmost that fits, an array takes all of
them, a struct takes them by name, and NaN becomes null. Timestamps, dates, decimals, binary, maps and nested structs come on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.errors import InvalidInput, InvalidState

if TYPE_CHECKING:
    from mlflow.types import Schema
    from pyspark.sql.types import DataType


class WrongRowCount(InvalidState):
    """A model returned more or fewer predictions than it got rows: which belongs to which is lost."""


def spark_type(schema: Schema, *, scalars: bool = False) -> DataType:
    """The Spark type of a signature's outputs: one output as it is, several as a struct.

    Args:
        schema: the outputs.
        scalars: a tensor of shape (-1,), which is what `infer_signature` makes of numpy predictions, as one value per row.
            `spark_udf` says array here, so `score_udf` does, too; a table is better off with a plain column.

    Example:
        >>> spark_type(signature.outputs).simpleString()
        'double'
    """
    from pyspark.sql.types import StructField, StructType

    if len(schema.inputs) == 1:
        return _spec_type(schema.inputs[0], scalars)
    return StructType([StructField(spec.name or str(i), _spec_type(spec, scalars)) for i, spec in enumerate(schema.inputs)])


def _spec_type(spec: Any, scalars: bool) -> DataType:
    from mlflow.types import TensorSpec
    from mlflow.types.schema import DataType as MlflowType
    from pyspark.sql.types import ArrayType

    if not isinstance(spec, TensorSpec):
        return _nested_type(spec.type)
    element = MlflowType.from_numpy_type(spec.type)
    if element is None:
        raise InvalidInput(f"The model's output has the tensor type {spec.type}, which Spark does not have. Give result_type=.")
    kind: DataType = element.to_spark()
    for _ in spec.shape[1:] if scalars else spec.shape:
        kind = ArrayType(kind)
    return kind


def _nested_type(kind: Any) -> DataType:
    from mlflow.types.schema import AnyType, Array, Map, Object
    from pyspark.sql.types import ArrayType, MapType, StringType, StructField, StructType

    if isinstance(kind, Array):
        return ArrayType(_nested_type(kind.dtype))
    if isinstance(kind, Object):
        return StructType([StructField(field.name, _nested_type(field.dtype)) for field in kind.properties])
    if isinstance(kind, Map):
        return MapType(StringType(), _nested_type(kind.value_type))
    if isinstance(kind, AnyType):
        raise InvalidInput("The model's signature says 'any' for an output. Give result_type=, such as 'string'.")
    return kind.to_spark()  # type: ignore[no-any-return]


def arrow_type(kind: DataType) -> pa.DataType:
    """The Arrow type by which Spark takes and gives this type; timestamps in UTC."""
    from pyspark.sql.pandas.types import to_arrow_type

    return to_arrow_type(kind, timezone="UTC")


def to_array(result: Any, wanted: pa.DataType, rows: int, zone: str = "UTC") -> pa.Array:
    """A model's output as one Arrow array.

    Args:
        result: what `predict` returned: numpy, pandas, a list, a dict of columns, a sparse matrix, a tensor, a scalar.
        wanted: the Arrow type of the result.
        rows: how many rows the model was given.
        zone: the time zone of timestamps that name none (Spark's session time zone).

    Raises:
        WrongRowCount: there are not exactly `rows` predictions.
        InvalidInput: no part of the output fits the type.

    Example:
        >>> to_array(np.array([1, 2]), pa.float64(), 2).to_pylist()
        [1.0, 2.0]
    """
    result = _plain(result)
    count = _count(result)
    if count != rows:
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


def _count(result: Any) -> int:
    if isinstance(result, Mapping):
        counts = {len(values) for values in result.values()}
        return max(counts, key=lambda count: count) if len(counts) == 1 else -1 if counts else 0
    return len(result)


def _convert(result: Any, wanted: pa.DataType, zone: str) -> pa.Array:
    if pa.types.is_struct(wanted):
        return _struct(result, wanted, zone)
    if pa.types.is_list(wanted) or pa.types.is_large_list(wanted):
        return _list(result, wanted)
    if pa.types.is_map(wanted):
        return _values(pd.Series(list(_only(result)), dtype=object), wanted, zone)
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


def _only(result: Any) -> Any:
    """The rows of a result that is one column."""
    if isinstance(result, pd.DataFrame):
        return result.iloc[:, 0] if result.shape[1] == 1 else result.to_dict("records")
    if isinstance(result, Mapping):
        return _frame(result).to_dict("records")
    return result


def _fits(dtype: Any, wanted: pa.DataType, *, objects: bool = False) -> bool:
    anything = objects and pd.api.types.is_object_dtype(dtype)
    if pa.types.is_boolean(wanted):
        return bool(pd.api.types.is_bool_dtype(dtype)) or anything
    if pa.types.is_integer(wanted):
        return bool(pd.api.types.is_integer_dtype(dtype)) or anything
    if pa.types.is_floating(wanted):
        return bool(pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)) or anything
    return True


def _values(values: Any, wanted: pa.DataType, zone: str) -> pa.Array:
    """One column of values as Arrow; NaN becomes null."""
    if pa.types.is_string(wanted) or pa.types.is_large_string(wanted):
        return pa.array([None if value is None or value is pd.NA else str(value) for value in values], wanted)
    if pa.types.is_timestamp(wanted) and wanted.tz:
        return _timestamps(values, wanted, zone)
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


def _timestamps(values: Any, wanted: pa.DataType, zone: str) -> pa.Array:
    series = pd.to_datetime(pd.Series(values).reset_index(drop=True))
    if series.dt.tz is None:
        series = series.dt.tz_localize(zone, ambiguous=False)
    return pa.array(series, from_pandas=True).cast(wanted, safe=False)


def _list(result: Any, wanted: pa.DataType) -> pa.Array:
    element = wanted.value_type
    if isinstance(result, (pd.DataFrame, Mapping)):
        frame = _frame(result)
        nested = (
            frame.shape[1] == 1
            and pd.api.types.is_object_dtype(frame.dtypes.iloc[0])
            and _is_row_list(frame.iloc[0, 0] if len(frame) else [])
        )
        if nested:
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
    rows = [row if row is None or _is_row_list(row) else [row] for row in result]
    return pa.array([_pairs(row, wanted) for row in rows], wanted, from_pandas=True)


def _is_row_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


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
        columns.append(
            _convert(list(frame.iloc[:, place]), field.type, zone) if pa.types.is_list(field.type) else _field(frame, place, field, zone)
        )
    return pa.StructArray.from_arrays(columns, fields=list(wanted))


def _field(frame: pd.DataFrame, place: int, field: pa.Field, zone: str) -> pa.Array:
    return _values(frame.iloc[:, place], field.type, zone)


def _describe(result: Any) -> str:
    if isinstance(result, (pd.DataFrame, Mapping)):
        frame = _frame(result)
        return "columns " + ", ".join(f"{name} {dtype}" for name, dtype in zip(frame.columns, frame.dtypes, strict=True))
    if isinstance(result, (np.ndarray, pd.Series)):
        return f"{type(result).__name__} of {result.dtype} with shape {result.shape}"
    first = type(result[0]).__name__ if len(result) else "nothing"
    return f"{type(result).__name__} of {first}"
