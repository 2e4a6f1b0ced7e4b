"""Do a table's columns suit the model? Asked on the driver, before anything runs, and answered by MLflow's own rules."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException

from spark_tracking.errors import InvalidInput

if TYPE_CHECKING:
    from pyspark.sql.types import DataType, StructType

    from spark_tracking.scoring.model import ResolvedModel


def check_inputs(model: ResolvedModel, columns: StructType) -> None:
    """Refuse a table that lacks inputs of the model or has them in another type.

    A model without a signature takes anything.

    Args:
        model: the model.
        columns: the table's Spark schema.

    Raises:
        InvalidInput: names every missing and wrongly typed column, with what the signature wants.

    Example:
        >>> check_inputs(resolve("models:/wine@champion"), spark.table("wine").schema)
    """
    inputs = model.inputs
    if inputs is None or not inputs.has_input_names():
        return
    types = {field.name: field.dataType for field in columns}
    required = set(inputs.required_input_names())
    problems = []
    for spec in inputs.inputs:
        if spec.name not in types:
            if spec.name in required:
                problems.append(f"'{spec.name}' is missing (the model wants {_wants(spec)})")
        elif not _suits(spec, types[spec.name]):
            problems.append(f"'{spec.name}' is {types[spec.name].simpleString()} (the model wants {_wants(spec)})")
    if problems:
        raise InvalidInput(
            f"The table does not suit the model {model.label}: {'; '.join(problems)}. "
            "Rename or cast them, as in score_table(..., source=df.withColumn('x', df.x.cast('double')))."
        )


def safe_casts(model: ResolvedModel) -> dict[str, str]:
    """Inputs that whole numbers are cast to without loss, which MLflow alone refuses, as input name -> Arrow type.

    A double holds each whole number up to 2^53, a float up to 2^24; a greater one is an error of the job, never rounded.
    """
    from mlflow.types.schema import DataType as MlflowType

    if model.inputs is None or not model.inputs.has_input_names():
        return {}
    floats: dict[Any, str] = {MlflowType.double: "float64", MlflowType.float: "float32"}
    kinds = {str(spec.name): spec.type for spec in model.inputs.inputs}
    return {name: floats[kind] for name, kind in kinds.items() if isinstance(kind, MlflowType) and kind in floats}


def input_names(model: ResolvedModel, columns: StructType) -> list[str]:
    """The columns that the model reads, in its order: the signature's, or all of the table without a signature."""
    inputs = model.inputs
    names = [field.name for field in columns]
    if inputs is None or not inputs.has_input_names():
        return names
    return [name for name in inputs.input_names() if name in set(names)]


def _wants(spec: Any) -> str:
    from mlflow.types import TensorSpec

    return (
        f"a tensor of {spec.type} with shape {spec.shape}" if isinstance(spec, TensorSpec) else str(getattr(spec.type, "name", spec.type))
    )


def _suits(spec: Any, kind: DataType) -> bool:
    from mlflow.models import validate_schema
    from mlflow.types import Schema, TensorSpec
    from mlflow.types.schema import DataType as MlflowType
    from pyspark.sql.types import ArrayType, ByteType, IntegralType, NumericType, ShortType, StringType

    if isinstance(spec, TensorSpec):
        return isinstance(kind, (ArrayType, NumericType, StringType))
    if isinstance(kind, IntegralType) and spec.type == MlflowType.double:
        return True  # by `safe_casts`
    if isinstance(kind, (ByteType, ShortType)) and spec.type == MlflowType.float:
        return True
    try:
        validate_schema(pd.DataFrame({spec.name: _column(kind)}), Schema([spec]))
    except MlflowException:
        return False
    return True


def _column(kind: DataType) -> pd.Series:
    """One row of a Spark type, as the model will see it in pandas."""
    from pyspark.sql import types as t

    dtypes: dict[type[DataType], Any] = {
        t.ByteType: np.int8,
        t.ShortType: np.int16,
        t.IntegerType: np.int32,
        t.LongType: np.int64,
        t.FloatType: np.float32,
        t.DoubleType: np.float64,
        t.BooleanType: np.bool_,
        t.TimestampType: "datetime64[ns]",
        t.TimestampNTZType: "datetime64[ns]",
    }
    return pd.Series([_value(kind)], dtype=dtypes.get(type(kind), object))


def _value(kind: DataType) -> Any:
    from pyspark.sql import types as t

    if isinstance(kind, t.ArrayType):
        return np.array([_value(kind.elementType)], dtype=_column(kind.elementType).dtype)
    if isinstance(kind, t.StructType):
        return {field.name: _value(field.dataType) for field in kind}
    if isinstance(kind, t.MapType):
        return {"key": _value(kind.valueType)}
    simple: dict[type[DataType], Any] = {
        t.StringType: "text",
        t.BinaryType: b"bytes",
        t.BooleanType: True,
        t.FloatType: 1.5,
        t.DoubleType: 1.5,
        t.DateType: dt.date(2024, 1, 2),
        t.TimestampType: pd.Timestamp("2024-01-02 03:04:05"),
        t.TimestampNTZType: pd.Timestamp("2024-01-02 03:04:05"),
        t.DecimalType: Decimal("1.5"),
    }
    return simple.get(type(kind), 2)  # MLflow lets a 1 pass as anything
