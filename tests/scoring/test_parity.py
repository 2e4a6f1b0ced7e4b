"""The same answer as `mlflow.pyfunc.spark_udf`, value by value and type by type, over signatures, outputs and ways of calling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import Array, DataType, Map, Object, Property
from pyspark.sql import SparkSession
from pyspark.sql import functions as f
from scoring_models import NUMBERS, save_function

from spark_tracking.scoring import score_udf

INPUTS = infer_signature(NUMBERS).inputs
DOUBLE = Schema([ColSpec("double")])
RECORD = Object([Property("label", DataType.string), Property("scores", Array(DataType.double))])


class Returning(mlflow.pyfunc.PythonModel):
    """Answers with a function of its input."""

    def __init__(self, answer: Callable[[pd.DataFrame], Any]) -> None:
        self.answer = answer

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        return self.answer(model_input)


OUTPUTS: dict[str, tuple[Callable[[pd.DataFrame], Any], Schema | None, str | None]] = {
    "numpy, by tensor signature": (lambda x: x["a"].to_numpy(), infer_signature(NUMBERS, NUMBERS["a"].to_numpy()).outputs, None),
    "double": (lambda x: x["a"], DOUBLE, None),
    "NaN": (lambda x: x["a"].where(x["a"] > 0), DOUBLE, None),
    "no signature means double": (lambda x: x["a"], None, None),
    "leftmost numeric": (lambda x: pd.DataFrame({"t": ["x"] * len(x), "n": x["b"]}), None, "double"),
    "float": (lambda x: x["a"].to_numpy(), None, "float"),
    "long": (lambda x: (x["a"] * 10).astype("int64"), None, "long"),
    "int from short": (lambda x: (x["a"] * 10).astype("int16"), None, "int"),
    "boolean": (lambda x: x["a"] > 0, None, "boolean"),
    "string": (lambda x: ["pos" if a > 0 else "neg" for a in x["a"]], None, "string"),
    "numbers as string": (lambda x: x["a"], None, "string"),
    "all columns": (lambda x: x[["a", "b"]], None, "array<double>"),
    "matrix": (lambda x: x.to_numpy(), None, "array<float>"),
    "matrix with NaN": (lambda x: x.where(x > 0).to_numpy(), None, "array<double>"),
    "cube": (lambda x: np.stack([x.to_numpy()] * 2, axis=1), None, "array<array<double>>"),
    "struct by name": (lambda x: pd.DataFrame({"b": x["b"], "a": x["a"]}), None, "a double, b float"),
    "struct with an array": (lambda x: [{"l": "x", "s": [v, 1.0]} for v in x["a"]], None, "l string, s array<double>"),
    "dict of columns": (lambda x: {"a": x["a"].to_numpy(), "b": x["b"].to_numpy()}, None, "a double, b double"),
    "several outputs by signature": (lambda x: x[["a", "b"]], infer_signature(NUMBERS, NUMBERS[["a", "b"]]).outputs, None),
    "objects by signature": (
        lambda x: [{"label": "x", "scores": [v]} for v in x["a"]],
        Schema([ColSpec(DataType.string, "label"), ColSpec(Array(DataType.double), "scores")]),
        None,
    ),
    "nested objects by signature": (
        lambda x: pd.DataFrame({"r": [{"label": "x", "scores": [v]} for v in x["a"]], "m": [{"k": v} for v in x["b"]]}),
        Schema([ColSpec(RECORD, "r"), ColSpec(Map(DataType.double), "m")]),
        None,
    ),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_same_values_of_the_same_type(spark: SparkSession, tmp_path: Path, name: str) -> None:
    answer, outputs, result_type = OUTPUTS[name]
    model = save_function(tmp_path / "model", Returning(answer), ModelSignature(INPUTS, outputs))
    df = spark.createDataFrame(NUMBERS.head(20)).coalesce(1)
    theirs, mine = mlflow.pyfunc.spark_udf(spark, model, result_type), score_udf(spark, model, result_type)
    both = df.select(theirs("a", "b", "c").alias("theirs"), mine("a", "b", "c").alias("mine"))
    assert both.schema["mine"].dataType == both.schema["theirs"].dataType
    rows = both.collect()
    assert repr([row["mine"] for row in rows]) == repr([row["theirs"] for row in rows])


def test_inputs_look_the_same_to_the_model(spark: SparkSession, tmp_path: Path) -> None:
    model = save_function(
        tmp_path / "model", Returning(lambda x: [f"{list(zip(x.columns, x.dtypes))} {row}" for row in x.to_dict("records")])
    )
    df = spark.range(0, 4, 1, 1).select(
        "id",
        f.expr("CAST(id AS INT) AS whole"),
        f.expr("IF(id = 1, NULL, id = 2) AS flag"),
        f.expr("timestamp'2024-03-31 02:30:00' AS at"),
        f.expr("timestamp_ntz'2024-03-31 02:30:00' AS local"),
        f.expr("date'2024-01-02' AS day"),
        f.expr("IF(id = 1, NULL, CAST(id AS DECIMAL(5, 2))) AS price"),
        f.expr("array(id, 1) AS list"),
        f.expr("named_struct('x', id, 'y', 'z') AS record"),
        f.expr("map('k', id) AS map"),
        f.expr("IF(id = 1, NULL, 'text') AS text"),
        f.expr("X'01' AS raw"),
    )
    theirs, mine = mlflow.pyfunc.spark_udf(spark, model, "string"), score_udf(spark, model, "string")
    rows = df.select(theirs(f.struct("*")).alias("theirs"), mine(f.struct("*")).alias("mine")).collect()
    assert [row["mine"] for row in rows] == [row["theirs"] for row in rows]


def test_whole_numbers_with_nulls_look_the_same_to_the_model(spark: SparkSession, tmp_path: Path) -> None:
    show = Returning(lambda x: [f"{list(x.dtypes)} {row}" for row in x.to_dict("records")])
    model = save_function(tmp_path / "model", show)
    df = spark.range(0, 4, 1, 1).select(
        *[f.expr(f"IF(id = 1, NULL, CAST(id AS {kind})) AS {kind}") for kind in ("INT", "BIGINT", "TINYINT")]
    )
    theirs, mine = mlflow.pyfunc.spark_udf(spark, model, "string"), score_udf(spark, model, "string")
    for given in (df.columns, [f.struct("*")]):
        rows = df.select(theirs(*given).alias("theirs"), mine(*given).alias("mine")).collect()
        assert [row["mine"] for row in rows] == [row["theirs"] for row in rows]
        assert "nan" in rows[1]["mine"]
