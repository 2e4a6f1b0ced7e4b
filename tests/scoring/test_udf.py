"""`score_udf` is called as `mlflow.pyfunc.spark_udf` is, and answers the same."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from scoring_models import NUMBERS, save_function

from spark_tracking.errors import InvalidInput, NotFound
from spark_tracking.scoring import score_udf
from spark_tracking.scoring.model import resolve
from spark_tracking.scoring.udf import model_call
from spark_tracking.scoring.worker.model_call import score_batches
from spark_tracking.spark.worker import settle


@pytest.fixture(scope="module")
def numbers(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(NUMBERS).repartition(2).cache()


def values(df: DataFrame, column: Any) -> list[Any]:
    return [row[0] for row in df.select(column).collect()]


def test_columns_a_struct_keywords_and_nothing_at_all_mean_the_same(spark: SparkSession, numbers: DataFrame, regressor: str) -> None:
    predict = score_udf(spark, regressor)
    answers = numbers.select(
        predict("a", "b", "c"),
        predict(f.col("a"), f.col("b"), f.col("c")),
        predict(f.struct("c", "a", "b")),
        predict(b="b", a=f.col("a"), c="c"),
        predict(),
    ).collect()
    assert all(len(set(row)) == 1 for row in answers)
    model = mlflow.pyfunc.load_model(regressor)
    assert sorted(row[0] for row in answers) == pytest.approx(sorted(model.predict(NUMBERS)))


def test_a_registered_function_scores_in_sql(spark: SparkSession, numbers: DataFrame, regressor: str) -> None:
    predict = score_udf(spark, regressor)
    spark.udf.register("predict_y", predict)
    numbers.createOrReplaceTempView("numbers")
    rows = spark.sql("SELECT predict_y(a, b, c), predict_y(struct(a, b, c)) FROM numbers").collect()
    assert [row[0] for row in rows] == values(numbers, predict()) == [row[1] for row in rows]


def test_an_alias_is_resolved_once_and_reported(spark: SparkSession, numbers: DataFrame, registry: mlflow.MlflowClient) -> None:
    predict = score_udf(spark, "models:/wine@champion")
    assert (predict.model.name, predict.model.version, predict.model.alias) == ("wine", "1", "champion")
    before = values(numbers, predict())
    registry.set_registered_model_alias("wine", "champion", "2")
    assert values(numbers, predict()) == before
    assert values(numbers, score_udf(spark, "models:/wine@champion")()) != before


@pytest.mark.parametrize("form", ["models:/wine/1", "runs:/{run}/wine", "models:/{model_id}", "models:/wine/latest"])
def test_every_form_of_model_uri(spark: SparkSession, registry: mlflow.MlflowClient, form: str) -> None:
    version = registry.get_model_version("wine", "2" if "latest" in form else "1")
    model_id = version.source.removeprefix("models:/")
    predict = score_udf(spark, form.format(run=version.run_id, model_id=model_id))
    assert predict.model.run_id == version.run_id
    assert predict.model.model_id == model_id


@pytest.mark.parametrize("uri", ["models:/wine@nobody", "models:/wine/99", "models:/nothing/1", "/no/such/folder"])
def test_a_model_that_does_not_exist_is_named(spark: SparkSession, registry: mlflow.MlflowClient, uri: str) -> None:
    with pytest.raises(NotFound, match=uri):
        score_udf(spark, uri)


def test_a_method_of_the_native_flavour(spark: SparkSession, numbers: DataFrame, classifier: str) -> None:
    ours = values(numbers, score_udf(spark, classifier, method="predict_proba")())
    rows = numbers.toPandas()
    native = mlflow.sklearn.load_model(classifier)
    assert np.allclose(ours, native.predict_proba(rows))


def test_a_method_that_the_model_lacks_is_named(spark: SparkSession, numbers: DataFrame, regressor: str) -> None:
    with pytest.raises(Exception, match=r"LinearRegression\) has no method 'predict_proba'"):
        values(numbers, score_udf(spark, regressor, method="predict_proba")())


class Shifted(mlflow.pyfunc.PythonModel):
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        return model_input["a"] + (params or {}).get("shift", 1.0)


def test_inference_parameters_reach_the_model(spark: SparkSession, numbers: DataFrame, tmp_path: Path) -> None:
    signature = infer_signature(NUMBERS[["a"]], NUMBERS["a"])
    signature.params = ParamSchema([ParamSpec("shift", DataType.double, 1.0)])
    uri = save_function(tmp_path / "shifted", Shifted(), signature)
    a = values(numbers, "a")
    assert values(numbers, score_udf(spark, uri)()) == pytest.approx([x + 1 for x in a])
    assert values(numbers, score_udf(spark, uri, params={"shift": 5.0})()) == pytest.approx([x + 5 for x in a])
    with pytest.raises(InvalidInput, match="no inference parameter 'shfit'; its signature has: shift"):
        score_udf(spark, uri, params={"shfit": 5.0})


class Sum(mlflow.pyfunc.PythonModel):
    """The sum of a row; fails where a value is above 100; counts a null as 0."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        if (model_input > 100).any().any():
            raise ValueError("above 100")
        return model_input.fillna(0).sum(axis=1)


@pytest.fixture
def summing(tmp_path: Path) -> str:
    return save_function(tmp_path / "sum", Sum())


def test_nulls_go_to_the_model_or_are_skipped_or_fail_the_job(spark: SparkSession, summing: str) -> None:
    df = spark.createDataFrame([(1.0, None), (None, None), (3.0, 4.0)], "a double, b double").coalesce(1)
    assert values(df, score_udf(spark, summing)(f.struct("a", "b"))) == [1.0, 0.0, 7.0]
    assert values(df, score_udf(spark, summing, nulls="skip")(f.struct("a", "b"))) == [None, None, 7.0]
    with pytest.raises(Exception, match=r"nulls in: a, b.*nulls='skip'"):
        values(df, score_udf(spark, summing, nulls="error")(f.struct("a", "b")))


def test_nan_is_no_null(spark: SparkSession, summing: str) -> None:
    df = spark.createDataFrame([(float("nan"),), (None,)], "a double")
    assert values(df, score_udf(spark, summing, nulls="skip")(f.struct("a"))) == [0.0, None]


def test_one_bad_row_costs_the_job_or_that_row_or_becomes_data(spark: SparkSession, summing: str) -> None:
    df = spark.range(0, 300, 1, 2).select(f.when(f.col("id") == 77, 1000.0).otherwise(1.0).alias("a"))
    with pytest.raises(Exception, match=r"above 100.*on_error='null' or 'report'"):
        values(df, score_udf(spark, summing)(f.struct("a")))
    assert values(df, score_udf(spark, summing, on_error="null")(f.struct("a"))) == [1.0] * 77 + [None] + [1.0] * 222
    reported = values(df, score_udf(spark, summing, on_error="report")(f.struct("a")))
    assert [i for i, row in enumerate(reported) if row["error"]] == [77]
    assert reported[77].asDict() == {"prediction": None, "error": "ValueError: above 100"}
    assert reported[78].asDict() == {"prediction": 1.0, "error": None}


class Wrong(mlflow.pyfunc.PythonModel):
    """Drops the last row of each batch."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        return model_input.iloc[:-1, 0]


@pytest.mark.parametrize("on_error", ["fail", "null", "report"])
def test_a_wrong_number_of_predictions_always_fails(spark: SparkSession, tmp_path: Path, on_error: Any) -> None:
    predict = score_udf(spark, save_function(tmp_path / "wrong", Wrong()), on_error=on_error)
    df = spark.range(10).coalesce(1).select(f.col("id").cast("double").alias("a"))
    with pytest.raises(Exception, match="returned 9 predictions for 10 rows"):
        values(df, predict(f.struct("a")))


def test_empty_partitions_and_empty_tables(spark: SparkSession, numbers: DataFrame, regressor: str) -> None:
    predict = score_udf(spark, regressor)
    assert values(numbers.where("a > 1e9"), predict()) == []
    assert len(values(numbers.where("a > 2").repartition(8), predict())) == (NUMBERS["a"] > 2).sum()


def test_check_names_every_column_that_does_not_suit(spark: SparkSession, numbers: DataFrame, regressor: str) -> None:
    predict = score_udf(spark, regressor)
    predict.check(numbers)
    predict.check(numbers.withColumn("a", f.col("a").cast("float")))
    bad = numbers.select(f.col("a").cast("string"), "b")
    with pytest.raises(InvalidInput, match=r"'a' is string \(the model wants double\); 'c' is missing \(the model wants double\)"):
        predict.check(bad)


def test_no_arguments_need_a_signature(spark: SparkSession, summing: str) -> None:
    with pytest.raises(InvalidInput, match="no signature with input names"):
        score_udf(spark, summing)()


def test_too_few_columns_are_refused_at_once(spark: SparkSession, regressor: str) -> None:
    with pytest.raises(InvalidInput, match=r"needs 3 columns \(a, b, c\) but got 2"):
        score_udf(spark, regressor)("a", "b")


def test_optional_inputs_must_be_named(spark: SparkSession, tmp_path: Path) -> None:
    signature = ModelSignature(Schema([ColSpec("double", "a"), ColSpec("double", "b", required=False)]), Schema([ColSpec("double")]))
    predict = score_udf(spark, save_function(tmp_path / "optional", Sum(), signature))
    with pytest.raises(InvalidInput, match=r"optional inputs \(b\)"):
        predict()
    df = spark.createDataFrame([(1.0, 2.0)], "a double, b double")
    assert values(df, predict("a")) == [1.0]
    assert values(df, predict("a", "b")) == [3.0]


@pytest.mark.parametrize(("argument", "value"), [("nulls", "drop"), ("on_error", "ignore"), ("result_type", "doubel")])
def test_unknown_settings_are_refused_by_name(spark: SparkSession, regressor: str, argument: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=f"{argument}='{value}'"):
        score_udf(spark, regressor, **{argument: value})


def test_another_environment_is_mlflows_work_and_our_options_are_refused_there(spark: SparkSession, regressor: str) -> None:
    with pytest.raises(InvalidInput, match="env_manager='virtualenv' hands the model to MLflow, which has no on_error='report'"):
        score_udf(spark, regressor, env_manager="virtualenv", on_error="report")


class Slow(mlflow.pyfunc.PythonModel):
    """Takes its time with each call."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        time.sleep(0.11)
        return model_input.iloc[:, 0]


def test_several_batches_go_in_one_call_of_a_quick_model_and_one_by_one_to_a_slow_one(
    spark: SparkSession, summing: str, tmp_path: Path
) -> None:
    batches = [pa.array([float(number)] * 10) for number in range(20)]
    expected = [float(number) for number in range(20) for _ in range(10)]
    for model, at_most in ((summing, 19), (save_function(tmp_path / "slow", Slow()), None)):
        call, _ = model_call(spark, resolve(model), "double")
        answers = list(score_batches(call, ((pa.StructArray.from_arrays([batch], ["a"]),) for batch in batches)))
        assert [value for answer in answers for value in answer.to_pylist()] == expected
        assert len(answers) <= at_most if at_most else [len(answer) for answer in answers] == [10] * 20


def test_workers_need_not_look_for_garbage_in_what_stays_and_the_users_process_is_left_alone(
    spark: SparkSession, numbers: DataFrame, regressor: str
) -> None:
    before = gc.get_freeze_count()
    values(numbers, score_udf(spark, regressor)())
    settle(loaded=True)
    assert gc.get_freeze_count() == before

    def frozen(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            yield pa.RecordBatch.from_pydict({"count": [gc.get_freeze_count()]})

    assert max(row["count"] for row in spark.range(4).mapInArrow(frozen, "count long").collect()) > 50_000
