"""`score_udf`: a drop-in for `mlflow.pyfunc.spark_udf`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Union

from spark_tracking.errors import InvalidInput
from spark_tracking.scoring.inputs import check_inputs, safe_casts
from spark_tracking.scoring.model import ResolvedModel, resolve
from spark_tracking.scoring.predict import NULLS, ON_ERROR, Nulls, OnError, Plan, score_batches, score_pandas
from spark_tracking.scoring.ship import ship
from spark_tracking.scoring.types import arrow_type, spark_type

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import DataType


_TYPES = ("boolean", "int", "long", "float", "double", "string", "binary", "date", "timestamp", "decimal(10,2)")


def score_udf(
    spark: SparkSession,
    model_uri: str,
    result_type: DataType | str | None = None,
    *,
    method: str = "predict",
    params: Mapping[str, Any] | None = None,
    nulls: Nulls = "model",
    on_error: OnError = "fail",
    env_manager: str | None = None,
    model_config: Mapping[str, Any] | None = None,
) -> Callable[..., Column]:
    """A UDF that scores with a logged model, called as `mlflow.pyfunc.spark_udf`'s.

    Args:
        spark: the session, classic or Connect.
        model_uri: any model URI of MLflow, or a folder. An alias is resolved here, once; see `.model` of the result.
        result_type: a Spark type or its text, nested as you like. None: what the signature says (as in `spark_udf` an array of
            one value, `[5.6]`, where it was inferred from numpy predictions); for another `method` `array<double>` if it gives
            one value per class, else `double`.
        method: a method of the logged object, such as `predict_proba`, for models whose pyfunc only predicts.
        params: inference parameters.
        nulls: rows with a null input go to the model (`model`), get a null (`skip`), or fail the job (`error`).
        on_error: a row that the model fails on fails the job (`fail`), gets a null (`null`), or the result is a struct
            `prediction, error` (`report`).
        env_manager: None or `local` uses the workers' environment; any other is handed to `mlflow.pyfunc.spark_udf`.
        model_config: overrides of the model's configuration.

    Returns:
        A function of columns: names or columns in the signature's order, one struct, keywords by input name, or nothing
        at all for the signature's names. It has `.model` (what was resolved), `.check(df)` (do a table's columns suit the
        model?) and can be registered for SQL with `spark.udf.register`.

    Raises:
        NotFound: there is no such model.
        InvalidInput: an argument is not allowed, or this is a Spark ML model, which `score_table` scores.

    Example:
        >>> predict = score_udf(spark, "models:/wine@champion", "double")
        >>> spark.table("wine").withColumn("quality", predict("alcohol", "acidity")).first().quality
        5.6
    """
    model = resolve(model_uri)
    if env_manager not in (None, "local"):
        return _isolated(spark, model, result_type, params, method, nulls, on_error, env_manager, model_config)
    plan, returned = make_plan(
        spark, model, result_type, method=method, params=params, nulls=nulls, on_error=on_error, model_config=model_config
    )
    return _callable(spark_function(plan, returned), model, plan)


def make_plan(
    spark: SparkSession,
    model: ResolvedModel,
    result_type: DataType | str | None,
    *,
    method: str = "predict",
    params: Mapping[str, Any] | None = None,
    nulls: Nulls = "model",
    on_error: OnError = "fail",
    model_config: Mapping[str, Any] | None = None,
    scalars: bool = False,
) -> tuple[Plan, DataType]:
    """What workers need to score with a model, and the Spark type of what they return; the model is shipped.

    `scalars` is `spark_type`'s: what a signature's one-dimensional tensor becomes.
    """
    from pyspark.sql.types import StringType, StructField, StructType

    _one_of("nulls", nulls, NULLS)
    _one_of("on_error", on_error, ON_ERROR)
    if model.is_spark_ml:
        raise InvalidInput(f"{model.label} is a Spark ML model, which has no per-row function. Use score_table, or its own transform.")
    if params and method == "predict":
        _check_params(model, params)
    prediction = _result_type(model, result_type, method, scalars)
    inputs = model.inputs
    plan = Plan(
        copy=ship(spark, model, config=dict(model_config or {})),
        names=None if inputs is None else tuple(str(name) for name in inputs.input_names()),
        required=0 if inputs is None else len(inputs.required_input_names()),
        result=arrow_type(prediction),
        zone=spark.conf.get("spark.sql.session.timeZone") or "UTC",
        method=method,
        params=params and dict(params),
        nulls=nulls,
        on_error=on_error,
        casts=safe_casts(model),
    )
    if on_error != "report":
        return plan, prediction
    return plan, StructType([StructField("prediction", prediction), StructField("error", StringType())])


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidInput(f"{name}='{value}' is not known. Use one of: {', '.join(allowed)}.")


def _check_params(model: ResolvedModel, params: Mapping[str, Any]) -> None:
    schema = model.metadata.get_params_schema()
    known = [param.name for param in schema.params] if schema else []
    if unknown := [name for name in params if name not in known]:
        raise InvalidInput(
            f"The model {model.label} takes no inference parameter {', '.join(map(repr, unknown))}; its signature has: "
            f"{', '.join(known) or 'none'}."
        )


def _result_type(model: ResolvedModel, given: DataType | str | None, method: str, scalars: bool) -> DataType:
    from pyspark.sql.types import ArrayType, DoubleType

    if given is not None:
        return parse_type(given)
    if method != "predict":
        return ArrayType(DoubleType()) if method in ("predict_proba", "predict_log_proba", "transform") else DoubleType()
    return DoubleType() if model.outputs is None else spark_type(model.outputs, scalars=scalars)


def parse_type(given: DataType | str) -> DataType:
    """By Spark's own parser: a type (`array<double>`) or a list of fields (`label string, score double`)."""
    from pyspark.sql.types import DataType as SparkType

    if not isinstance(given, str):
        return given
    try:
        return SparkType.fromDDL("boolean" if given == "bool" else given)
    except Exception as error:
        near = "".join(f" Did you mean '{name}'?" for name in get_close_matches(given.lower(), _TYPES, n=1))
        raise InvalidInput(
            f"result_type='{given}' is not a Spark type.{near} Types are {', '.join(_TYPES)}, and of these array<double>, "
            "map<string,double>, or a list of fields: 'label string, score double'."
        ) from error


def spark_function(plan: Plan, returned: DataType) -> Any:
    """The plan as a Spark UDF: an Arrow one where Spark has them (4.1 on), else a pandas one."""
    from pyspark.sql import functions

    if not hasattr(functions, "arrow_udf"):
        return _pandas_function(plan, returned)
    import pyarrow as pa

    def score(batches: Any) -> Any:
        return score_batches(plan, batches)

    score.__annotations__ = {"batches": Iterator[pa.Array], "return": Iterator[pa.Array]}  # by these Spark tells UDFs apart
    return functions.arrow_udf(score, returned)


def _pandas_function(plan: Plan, returned: DataType) -> Any:
    import pandas as pd
    from pyspark.sql.pandas.functions import pandas_udf
    from pyspark.sql.types import StructType

    def score(batches: Any) -> Any:
        return score_pandas(plan, batches)

    output = pd.DataFrame if isinstance(returned, StructType) else pd.Series
    score.__annotations__ = {"batches": Iterator[tuple[Union[pd.Series, pd.DataFrame], ...]], "return": Iterator[output]}  # type: ignore[valid-type]  # noqa: UP007
    return pandas_udf(score, returned)  # type: ignore[call-overload]


def _callable(function: Any, model: ResolvedModel, plan: Plan) -> Callable[..., Column]:
    from pyspark.sql import functions

    @functools.wraps(function)  # carries what `spark.udf.register` looks for
    def predict(*columns: Any, **by_name: Any) -> Column:
        if columns and by_name:
            raise InvalidInput("Pass the model's inputs either by position or by name, not both.")
        if 1 < len(columns) < plan.required:  # one may be a struct
            raise InvalidInput(
                f"The model {model.label} needs {plan.required} columns ({', '.join(plan.names or ())}) but got {len(columns)}."
            )
        if by_name:
            fields = [functions.col(column) if isinstance(column, str) else column for column in by_name.values()]
            return function(functions.struct(*[field.alias(name) for name, field in zip(by_name, fields, strict=True)]))  # type: ignore[no-any-return]
        return function(*(columns or _signature_columns(model)))  # type: ignore[no-any-return]

    def check(df: DataFrame) -> None:
        check_inputs(model, df.schema)

    predict.model = model  # type: ignore[attr-defined]
    predict.metadata = model.metadata  # type: ignore[attr-defined]
    predict.check = check  # type: ignore[attr-defined]
    return predict


def _signature_columns(model: ResolvedModel) -> list[str]:
    inputs = model.inputs
    if inputs is None or not inputs.has_input_names():
        raise InvalidInput(f"The model {model.label} has no signature with input names, so name the columns: predict('a', 'b').")
    if optional := ", ".join(map(str, inputs.optional_input_names())):
        raise InvalidInput(f"The model {model.label} has optional inputs ({optional}), so name the columns: predict('a', 'b').")
    return [str(name) for name in inputs.input_names()]


def refuse(why: str, **given: Any) -> None:
    """Raise if any of these arguments is not its default: what then scores could not heed it."""
    defaults = {"method": "predict", "nulls": "model", "on_error": "fail", "params": None}
    if set_ones := [f"{name}={value!r}" for name, value in given.items() if value != defaults[name]]:
        raise InvalidInput(f"{why} {', '.join(set_ones)}.")


def _isolated(
    spark: SparkSession,
    model: ResolvedModel,
    result_type: DataType | str | None,
    params: Mapping[str, Any] | None,
    method: str,
    nulls: str,
    on_error: str,
    env_manager: str | None,
    model_config: Mapping[str, Any] | None,
) -> Callable[..., Column]:
    """MLflow rebuilds the environment and serves the model in it; what only our path can do is refused by name."""
    import mlflow.pyfunc

    refuse(f"env_manager='{env_manager}' hands the model to MLflow, which has no", method=method, nulls=nulls, on_error=on_error)
    function: Callable[..., Column] = mlflow.pyfunc.spark_udf(
        spark,
        model.pinned_uri,
        result_type,
        env_manager=env_manager,
        params=dict(params) if params else None,
        model_config=dict(model_config) if model_config else None,
    )
    function.model = model  # type: ignore[attr-defined]
    return function
