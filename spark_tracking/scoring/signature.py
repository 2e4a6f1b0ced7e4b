"""What a model's signature means for Spark: the types it takes and gives, and whether a table's columns suit it.

Asked on the driver, before anything runs, and answered by MLflow's own rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from difflib import get_close_matches
from inspect import signature
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
from mlflow.exceptions import MlflowException
from mlflow.models import validate_schema
from mlflow.types import Schema, TensorSpec
from mlflow.types.schema import AnyType, Array, Map, Object
from mlflow.types.schema import DataType as MlflowType
from pyspark.errors import PySparkTypeError
from pyspark.sql import types as t
from pyspark.sql.pandas.types import to_arrow_type

from spark_tracking.errors import InvalidInput
from spark_tracking.scoring.worker.model_call import to_frame

if TYPE_CHECKING:
    from spark_tracking.scoring.model import ResolvedModel

_UTC: dict[str, Any] = {"timezone": "UTC"} if "timezone" in signature(to_arrow_type).parameters else {}  # before Spark 4.2 it is understood
_TYPES = ("boolean", "int", "long", "float", "double", "string", "binary", "date", "timestamp", "decimal(10,2)")
_PER_CLASS = ("predict_proba", "predict_log_proba", "transform")
_EXACT: dict[Any, tuple[str, tuple[type[t.DataType], ...]]] = {
    MlflowType.double: ("float64", (t.IntegralType,)),
    MlflowType.float: ("float32", (t.ByteType, t.ShortType)),
}
"""Per floating input the Arrow type that whole numbers are cast to, which MLflow alone refuses, and the Spark types that always fit.

A double holds each whole number up to 2^53, a float up to 2^24; a greater one is an error of the job, never rounded.
"""


def arrow_type(kind: t.DataType) -> pa.DataType:
    """The Arrow type by which Spark takes and gives this type; timestamps in UTC."""
    return to_arrow_type(kind, **_UTC)


def input_names(model: ResolvedModel, columns: t.StructType) -> list[str]:
    """The columns that the model reads, in its order: the signature's, or all of the table without a signature."""
    if model.inputs is None or not model.inputs.has_input_names():
        return columns.names
    return [name for name in model.inputs.input_names() if name in columns.names]


def safe_casts(model: ResolvedModel) -> dict[str, str]:
    """Inputs that whole numbers are cast to without loss, as input name -> Arrow type."""
    if model.inputs is None or not model.inputs.has_input_names():
        return {}
    return {
        str(spec.name): _EXACT[spec.type][0] for spec in model.inputs.inputs if isinstance(spec.type, MlflowType) and spec.type in _EXACT
    }


def check_inputs(model: ResolvedModel, columns: t.StructType) -> None:
    """Refuse a table that lacks inputs of the model or has them in another type; a model without a signature takes anything.

    Raises:
        InvalidInput: names every missing and wrongly typed column, with what the signature wants.

    Example:
        >>> check_inputs(resolve("models:/wine@champion"), spark.table("wine").schema)
    """
    if model.inputs is None or not model.inputs.has_input_names():
        return
    types = {field.name: field.dataType for field in columns}
    problems = []
    for spec in model.inputs.inputs:
        wants = str(getattr(spec.type, "name", spec.type))
        if isinstance(spec, TensorSpec):
            wants = f"a tensor of {spec.type} with shape {spec.shape}"
        if spec.name in types and not _suits(spec, types[spec.name]):
            problems.append(f"'{spec.name}' is {types[spec.name].simpleString()} (the model wants {wants})")
        if spec.name not in types and spec.name in model.inputs.required_input_names():
            problems.append(f"'{spec.name}' is missing (the model wants {wants})")
    if problems:
        raise InvalidInput(
            f"The table does not suit the model {model.label}: {'; '.join(problems)}. "
            "Rename or cast them, as in score_table(..., source=df.withColumn('x', df.x.cast('double')))."
        )


def _suits(spec: Any, kind: t.DataType) -> bool:
    if isinstance(spec, TensorSpec):
        return isinstance(kind, (t.ArrayType, t.NumericType, t.StringType))
    if isinstance(spec.type, MlflowType) and isinstance(kind, _EXACT.get(spec.type, ("", ()))[1]):
        return True
    try:
        sample: Any = to_frame(pa.table({spec.name: _sample(arrow_type(kind))}))
    except PySparkTypeError:  # a type that Arrow has not got
        sample = pd.DataFrame({spec.name: pd.Series([2], dtype=object)})
    try:
        validate_schema(sample, Schema([spec]))
    except MlflowException:
        return False
    return True


def _sample(kind: pa.DataType) -> pa.Array:
    """One value of a type; whole numbers are 2, since MLflow lets a 1 pass as anything."""
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays([0, 1], _sample(kind.value_type), type=kind)
    if pa.types.is_struct(kind):
        return pa.StructArray.from_arrays([_sample(field.type) for field in kind], fields=list(kind))
    if pa.types.is_map(kind):
        return pa.MapArray.from_arrays([0, 1], _sample(kind.key_type), _sample(kind.item_type), type=kind)
    is_a = pa.types
    values = {"text": is_a.is_string(kind) or is_a.is_binary(kind), 1.5: is_a.is_floating(kind), True: is_a.is_boolean(kind)}
    value = next((value for value, fits in values.items() if fits), Decimal(0) if is_a.is_decimal(kind) else 2)
    return pa.array([value], kind)


def check_params(model: ResolvedModel, params: Mapping[str, Any]) -> None:
    """Refuse inference parameters that the signature has not got.

    Raises:
        InvalidInput: names them, and those that it has.
    """
    schema = model.metadata.get_params_schema()
    known = [param.name for param in schema.params] if schema else []
    if unknown := [name for name in params if name not in known]:
        raise InvalidInput(
            f"The model {model.label} takes no inference parameter {', '.join(map(repr, unknown))}; its signature has: "
            f"{', '.join(known) or 'none'}."
        )


def prediction_type(model: ResolvedModel, given: t.DataType | str | None, method: str, *, scalars: bool) -> t.DataType:
    """The Spark type of a prediction: what is given, or what the signature says; a method of its own gives doubles.

    `scalars`: a tensor of shape (-1,), which is what `infer_signature` makes of numpy predictions, is one value per row.
    `spark_udf` says array here, so `score_udf` does, too; a table is better off with a plain column.

    Raises:
        InvalidInput: that is no Spark type.
    """
    if given is not None:
        return parse_type(given)
    if method != "predict":
        return t.ArrayType(t.DoubleType()) if method in _PER_CLASS else t.DoubleType()
    outputs = () if model.outputs is None else model.outputs.inputs
    if len(outputs) < 2:
        return _spec_type(outputs[0], scalars) if outputs else t.DoubleType()
    return t.StructType([t.StructField(spec.name or str(i), _spec_type(spec, scalars)) for i, spec in enumerate(outputs)])


def parse_type(given: t.DataType | str) -> t.DataType:
    """By Spark's own parser: a type (`array<double>`) or a list of fields (`label string, score double`)."""
    if not isinstance(given, str):
        return given
    try:
        return t.DataType.fromDDL("boolean" if given == "bool" else given)
    except Exception as error:
        near = "".join(f" Did you mean '{name}'?" for name in get_close_matches(given.lower(), _TYPES, n=1))
        raise InvalidInput(
            f"result_type='{given}' is not a Spark type.{near} Types are {', '.join(_TYPES)}, and of these array<double>, "
            "map<string,double>, or a list of fields: 'label string, score double'."
        ) from error


def _spec_type(spec: Any, scalars: bool) -> t.DataType:
    if not isinstance(spec, TensorSpec):
        return _nested_type(spec.type)
    element = MlflowType.from_numpy_type(spec.type)
    if element is None:
        raise InvalidInput(f"The model's output has the tensor type {spec.type}, which Spark does not have. Give result_type=.")
    kind: t.DataType = element.to_spark()
    for _ in spec.shape[1:] if scalars else spec.shape:
        kind = t.ArrayType(kind)
    return kind


def _nested_type(kind: Any) -> t.DataType:
    if isinstance(kind, Array):
        return t.ArrayType(_nested_type(kind.dtype))
    if isinstance(kind, Object):
        return t.StructType([t.StructField(field.name, _nested_type(field.dtype)) for field in kind.properties])
    if isinstance(kind, Map):
        return t.MapType(t.StringType(), _nested_type(kind.value_type))
    if isinstance(kind, AnyType):
        raise InvalidInput("The model's signature says 'any' for an output. Give result_type=, such as 'string'.")
    return kind.to_spark()  # type: ignore[no-any-return]
