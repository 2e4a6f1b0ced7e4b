"""`score_udf`: a drop-in for `mlflow.pyfunc.spark_udf`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Union, get_args

import pandas as pd
import pyarrow as pa
from pyspark.sql import functions as f
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import DataType, StringType, StructField, StructType

from spark_tracking.errors import InvalidInput
from spark_tracking.scoring.model import ResolvedModel, resolve
from spark_tracking.scoring.ship import ship
from spark_tracking.scoring.signature import arrow_type, check_inputs, check_params, prediction_type, safe_casts
from spark_tracking.scoring.worker.model_call import ModelCall, Nulls, OnError, score_batches, score_pandas

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession


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
    if env_manager in (None, "local"):
        options: dict[str, Any] = {"method": method, "params": params, "nulls": nulls, "on_error": on_error, "model_config": model_config}
        return _callable(model, *model_call(spark, model, result_type, **options))
    import mlflow.pyfunc

    # MLflow rebuilds the environment and serves the model in it; what only our path can do is refused by name.
    refuse(f"env_manager='{env_manager}' hands the model to MLflow, which has no", method=method, nulls=nulls, on_error=on_error)
    given: dict[str, Any] = {"params": dict(params or {}) or None, "model_config": dict(model_config or {}) or None}
    function: Any = mlflow.pyfunc.spark_udf(spark, model.pinned_uri, result_type, env_manager=env_manager, **given)
    function.model = model
    return function  # type: ignore[no-any-return]


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raise if an argument is none of a `Literal`'s choices."""
    if value not in get_args(choices):
        raise InvalidInput(f"{name}='{value}' is not known. Use one of: {', '.join(get_args(choices))}.")


def refuse(why: str, **given: Any) -> None:
    """Raise if any of these arguments is not its default: what then scores could not heed it."""
    defaults = {"method": "predict", "nulls": "model", "on_error": "fail", "params": None}
    if set_ones := [f"{name}={value!r}" for name, value in given.items() if value != defaults[name]]:
        raise InvalidInput(f"{why} {', '.join(set_ones)}.")


def model_call(
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
) -> tuple[ModelCall, DataType]:
    """How workers call a model, and the Spark type of a prediction (`scalars`: see `prediction_type`); the model is shipped."""
    check_choice("nulls", nulls, Nulls)
    check_choice("on_error", on_error, OnError)
    if model.is_spark_ml:
        raise InvalidInput(f"{model.label} is a Spark ML model, which has no per-row function. Use score_table, or its own transform.")
    if params and method == "predict":
        check_params(model, params)
    prediction, inputs = prediction_type(model, result_type, method, scalars=scalars), model.inputs
    call = ModelCall(
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
    return call, prediction


def spark_function(call: ModelCall, prediction: DataType) -> Any:
    """The call as a Spark UDF: an Arrow one where Spark has them (4.1 on), else a pandas one."""
    reported = StructType([StructField("prediction", prediction), StructField("error", StringType())])
    returned = reported if call.on_error == "report" else prediction

    def by_arrow(batches: Any) -> Any:
        return score_batches(call, batches)

    def by_pandas(batches: Any) -> Any:
        return score_pandas(call, batches)

    if hasattr(f, "arrow_udf"):  # by their annotations Spark tells UDFs apart
        by_arrow.__annotations__ = {"batches": Iterator[pa.Array], "return": Iterator[pa.Array]}
        return f.arrow_udf(by_arrow, returned)
    output = pd.DataFrame if isinstance(returned, StructType) else pd.Series
    by_pandas.__annotations__ = {"batches": Iterator[tuple[Union[pd.Series, pd.DataFrame], ...]], "return": Iterator[output]}  # type: ignore[valid-type]  # noqa: UP007
    return pandas_udf(by_pandas, returned)  # type: ignore[call-overload]


def _callable(model: ResolvedModel, call: ModelCall, prediction: DataType) -> Callable[..., Column]:
    function = spark_function(call, prediction)

    @functools.wraps(function)  # carries what `spark.udf.register` looks for
    def predict(*columns: Any, **by_name: Any) -> Column:
        if columns and by_name:
            raise InvalidInput("Pass the model's inputs either by position or by name, not both.")
        if 1 < len(columns) < call.required:  # one may be a struct
            raise InvalidInput(
                f"The model {model.label} needs {call.required} columns ({', '.join(call.names or ())}) but got {len(columns)}."
            )
        if by_name:
            fields = [f.col(column) if isinstance(column, str) else column for column in by_name.values()]
            columns = (f.struct(*[field.alias(name) for name, field in zip(by_name, fields, strict=True)]),)
        return function(*(columns or _signature_columns(model)))  # type: ignore[no-any-return]

    def check(df: DataFrame) -> None:
        check_inputs(model, df.schema)

    predict.model, predict.metadata, predict.check = model, model.metadata, check  # type: ignore[attr-defined]
    return predict


def _signature_columns(model: ResolvedModel) -> list[str]:
    inputs = model.inputs
    if inputs is None or not inputs.has_input_names():
        raise InvalidInput(f"The model {model.label} has no signature with input names, so name the columns: predict('a', 'b').")
    if optional := ", ".join(map(str, inputs.optional_input_names())):
        raise InvalidInput(f"The model {model.label} has optional inputs ({optional}), so name the columns: predict('a', 'b').")
    return [str(name) for name in inputs.input_names()]
