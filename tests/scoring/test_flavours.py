"""Models of many libraries give what they give by themselves; those that want something special get it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from scoring_models import CLASSES, NUMBERS, save_function, save_sklearn

from spark_tracking.errors import InvalidInput
from spark_tracking.scoring import score_table, score_udf


@pytest.fixture
def numbers(spark: SparkSession) -> DataFrame:
    """The numbers with an id, a label and a text that is no input."""
    return spark.createDataFrame(NUMBERS.assign(id=range(len(NUMBERS)), label=CLASSES.astype(float), note="n/a"))


def answers(scored: DataFrame, column: str = "prediction") -> list[Any]:
    return [row[0] for row in scored.orderBy("id").select(column).collect()]


def job(spark: SparkSession, model: str, source: DataFrame, tmp_path: Path, **more: Any) -> DataFrame:
    score_table(spark, model, source, str(tmp_path / "target"), keep=["id"], mode="overwrite", **more)
    return spark.read.format("delta").load(str(tmp_path / "target"))


@pytest.fixture
def spark_ml(spark: SparkSession, numbers: DataFrame, tmp_path: Path) -> tuple[str, Any]:
    from pyspark.ml import Pipeline
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.feature import VectorAssembler

    stages = [VectorAssembler(inputCols=["a", "b", "c"], outputCol="features"), LogisticRegression(maxIter=5)]
    fitted = Pipeline(stages=stages).fit(numbers)
    path = str(tmp_path / "spark-ml")
    mlflow.spark.save_model(fitted, path, pip_requirements=[], dfs_tmpdir=str(tmp_path / "dfs"))
    return path, fitted


def test_a_spark_ml_model_scores_by_its_own_transform(
    spark: SparkSession, numbers: DataFrame, spark_ml: tuple[str, Any], tmp_path: Path
) -> None:
    from pyspark.ml.functions import vector_to_array

    path, fitted = spark_ml
    own = fitted.transform(numbers)
    assert answers(job(spark, path, numbers, tmp_path)) == answers(own)
    own = own.withColumn("p", vector_to_array("probability"))
    assert answers(job(spark, path, numbers, tmp_path, method="predict_proba")) == answers(own, "p")


def test_what_a_spark_ml_model_cannot_do_is_said(
    spark: SparkSession, numbers: DataFrame, spark_ml: tuple[str, Any], tmp_path: Path
) -> None:
    path, _ = spark_ml
    with pytest.raises(InvalidInput, match=r"Spark ML model, which has no per-row function. Use score_table"):
        score_udf(spark, path)
    with pytest.raises(InvalidInput, match=r"own transform, which has no on_error='report'"):
        job(spark, path, numbers, tmp_path, on_error="report")
    with pytest.raises(InvalidInput, match=r"has no method 'decision_function'. Use 'predict' or 'predict_proba'"):
        job(spark, path, numbers, tmp_path, method="decision_function")
    with pytest.raises(Exception, match=r"[Ff]ield.*\ba\b|`a`"):
        job(spark, path, numbers.drop("a"), tmp_path)


def test_xgboost(spark: SparkSession, numbers: DataFrame, tmp_path: Path) -> None:
    xgboost = pytest.importorskip("xgboost", reason="XGBoost is not installed: pip install xgboost")
    model = xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(NUMBERS, CLASSES)
    mlflow.xgboost.save_model(model, str(tmp_path / "m"), signature=infer_signature(NUMBERS, model.predict(NUMBERS)), pip_requirements=[])
    assert answers(job(spark, str(tmp_path / "m"), numbers, tmp_path)) == model.predict(NUMBERS).tolist()
    found = answers(job(spark, str(tmp_path / "m"), numbers, tmp_path, method="predict_proba"))
    assert np.allclose(found, model.predict_proba(NUMBERS))


def test_lightgbm(spark: SparkSession, numbers: DataFrame, tmp_path: Path) -> None:
    lightgbm = pytest.importorskip("lightgbm", reason="LightGBM is not installed: pip install lightgbm")
    model = lightgbm.LGBMRegressor(n_estimators=5, n_jobs=1, verbose=-1).fit(NUMBERS, NUMBERS["a"])
    outputs = pd.DataFrame({"y": model.predict(NUMBERS)})
    mlflow.lightgbm.save_model(model, str(tmp_path / "m"), signature=infer_signature(NUMBERS, outputs), pip_requirements=[])
    assert answers(job(spark, str(tmp_path / "m"), numbers, tmp_path)) == pytest.approx(outputs["y"].tolist())


def test_pytorch(spark: SparkSession, numbers: DataFrame, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (some 200 MB): pip install torch")
    model = torch.nn.Linear(3, 2)
    inputs = NUMBERS.to_numpy(dtype="float32")
    with torch.no_grad():
        expected = model(torch.from_numpy(inputs)).numpy()
    mlflow.pytorch.save_model(model, str(tmp_path / "m"), signature=infer_signature(inputs, expected), pip_requirements=[])
    floats = numbers.select("id", *[f.col(name).cast("float") for name in "abc"])
    found = job(spark, str(tmp_path / "m"), floats, tmp_path, inputs=["a", "b", "c"], result_type="array<float>")
    assert np.allclose(answers(found), expected, atol=1e-6)


def test_a_model_of_a_matrix_gets_the_columns_that_are_named(spark: SparkSession, numbers: DataFrame, tmp_path: Path) -> None:
    from sklearn.linear_model import LinearRegression

    matrix = NUMBERS.to_numpy()
    model = LinearRegression().fit(matrix, matrix[:, 0])
    path = save_sklearn(tmp_path / "m", model, matrix, model.predict(matrix))
    found = answers(job(spark, path, numbers, tmp_path, inputs=["a", "b", "c"]))
    assert found == pytest.approx(NUMBERS["a"].tolist())
    with pytest.raises(InvalidInput, match="inputs= names columns that a DataFrame lacks: x, y"):
        job(spark, path, numbers, tmp_path, inputs=["x", "a", "y"])


class Many(mlflow.pyfunc.PythonModel):
    """One of each kind of output, as asked for when it was made."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        a = model_input["a"]
        answers = {
            "double": a,
            "string": [f"{x:.3f}" for x in a],
            "array<double>": model_input[["a", "b"]],
            "struct<a: double, t: string>": pd.DataFrame({"a": a, "t": "x"}),
            "map<string, double>": [{"k": x} for x in a],
            "timestamp": pd.Timestamp("2024-01-02") + pd.to_timedelta(a.round(), unit="D"),
        }
        return answers[self.kind]


@pytest.mark.parametrize("kind", ["double", "string", "array<double>", "struct<a: double, t: string>"])
def test_spark_without_arrow_udfs_gives_the_same_by_pandas_udfs(
    spark: SparkSession, numbers: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = save_function(tmp_path / "m", Many(kind))
    columns = f.struct("a", "b", "c")
    by_arrow = numbers.select("id", score_udf(spark, path, kind)(columns).alias("y"))
    monkeypatch.delattr("pyspark.sql.functions.arrow_udf")
    predict = score_udf(spark, path, kind)
    by_pandas = numbers.select("id", predict(columns).alias("y"))
    assert by_pandas.schema["y"].dataType == by_arrow.schema["y"].dataType
    assert answers(by_pandas, "y") == answers(by_arrow, "y")


@pytest.mark.parametrize("kind", ["map<string, double>", "timestamp"])
def test_both_strategies_take_maps_and_timestamps(spark: SparkSession, numbers: DataFrame, tmp_path: Path, kind: str) -> None:
    path = save_function(tmp_path / "m", Many(kind))
    numbers.write.format("delta").save(str(tmp_path / "source"))
    found = {}
    for strategy in ("files", "udf"):
        target = str(tmp_path / strategy)
        more: dict[str, Any] = {"keep": ["id"], "inputs": ["a", "b", "c"], "result_type": kind, "strategy": strategy}
        score_table(spark, path, str(tmp_path / "source"), target, **more)
        found[strategy] = answers(spark.read.format("delta").load(target))
    assert found["files"] == found["udf"]


def test_what_workers_lack_is_said_once_before_anything_runs(
    spark: SparkSession, numbers: DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_function(tmp_path / "m", Many("double"))
    (Path(path) / "requirements.txt").write_text("nosuchpackage==1.0\npandas==0.1\nmlflow\n")
    with caplog.at_level(logging.WARNING, "spark_tracking"):
        for _ in range(2):
            score_udf(spark, path)
    (record,) = [record for record in caplog.records if record.name.startswith("spark_tracking")]
    assert "nosuchpackage==1.0 but it is not installed" in record.getMessage()
    assert f"pandas==0.1 but {pd.__version__}" in record.getMessage()
