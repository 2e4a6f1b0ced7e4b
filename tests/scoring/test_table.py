"""`score_table`: a table in, a Delta table of predictions out, by whatever strategy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from scoring_models import NUMBERS, save_function

from spark_tracking.errors import InvalidInput, InvalidState, NotFound
from spark_tracking.scoring import score_table


@pytest.fixture
def source(spark: SparkSession, tmp_path: Path) -> str:
    """200 rows with id, a, b, c and a day, in two files; version 0."""
    path = str(tmp_path / "source")
    frame = NUMBERS.assign(id=range(len(NUMBERS)), day=["mon", "tue"] * 100)
    spark.createDataFrame(frame).repartition(2).write.format("delta").save(path)
    return path


def read(spark: SparkSession, path: str) -> DataFrame:
    return spark.read.format("delta").load(path)


def expected(model: str) -> dict[int, Any]:
    return dict(enumerate(mlflow.pyfunc.load_model(model).predict(NUMBERS).tolist()))


def scored(spark: SparkSession, path: str) -> dict[int, Any]:
    return {row["id"]: row["prediction"] for row in read(spark, path).select("id", "prediction").collect()}


def test_every_row_gets_its_prediction_and_the_result_says_what_was_done(
    spark: SparkSession, source: str, regressor: str, tmp_path: Path
) -> None:
    target = str(tmp_path / "target")
    result = score_table(spark, regressor, source, target, keep=["id"])
    assert read(spark, target).columns == ["id", "prediction"]
    assert scored(spark, target) == pytest.approx(expected(regressor))
    assert (result.status, result.rows, result.source_version) == ("scored", 200, 0)
    assert "200 rows scored" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["rows"] == 200


def test_without_keep_all_columns_come_along(spark: SparkSession, source: str, regressor: str, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    score_table(spark, regressor, source, target)
    assert set(read(spark, target).columns) == {"a", "b", "c", "id", "day", "prediction"}


def test_where_and_an_older_version(spark: SparkSession, source: str, regressor: str, tmp_path: Path) -> None:
    spark.createDataFrame(NUMBERS.assign(id=1000, day="wed")).write.format("delta").mode("append").save(source)
    target = str(tmp_path / "target")
    assert score_table(spark, regressor, source, target, version=0, where="day = 'mon'").rows == 100
    assert score_table(spark, regressor, source, target, mode="overwrite").rows == 400
    assert read(spark, target).count() == 400
    with pytest.raises(InvalidInput, match="exclude each other"):
        score_table(spark, regressor, source, target, version=0, timestamp="2024-01-01")


def test_a_source_as_it_was_at_a_time(spark: SparkSession, source: str, regressor: str, tmp_path: Path) -> None:
    (first,) = spark.sql(f"DESCRIBE HISTORY delta.`{source}`").select("timestamp").collect()
    read(spark, source).limit(10).write.format("delta").mode("append").save(source)
    target = str(tmp_path / "target")
    result = score_table(spark, regressor, source, target, keep=["id"], timestamp=first["timestamp"])
    assert (result.rows, result.source_version) == (200, 0)
    with pytest.raises(NotFound, match="no version as old as 2001-01-01"):
        score_table(spark, regressor, source, target, timestamp="2001-01-01")


class Picky(mlflow.pyfunc.PythonModel):
    """Fails on batches that have a negative `a`."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        if (model_input["a"] < 0).any():
            raise ValueError("negative")
        return model_input["a"]


@pytest.mark.parametrize("strategy", ["files", "udf"])
def test_rows_that_the_model_fails_on_are_counted_and_say_why(spark: SparkSession, source: str, tmp_path: Path, strategy: Any) -> None:
    model, target = save_function(tmp_path / "picky", Picky()), str(tmp_path / "target")
    bad = int((NUMBERS["a"] < 0).sum())
    with pytest.raises(Exception, match=r"failed on a batch of .* rows: ValueError: negative"):
        score_table(spark, model, source, target, strategy=strategy)
    assert not list((tmp_path / "target").glob("_delta_log/*.json"))
    result = score_table(spark, model, source, target, on_error="report", strategy=strategy)
    assert (result.rows, result.failed) == (200, bad)
    assert f"{bad} of them failed" in str(result)
    rows = read(spark, target)
    assert rows.where("a < 0 AND prediction IS NULL AND prediction_error = 'ValueError: negative'").count() == bad
    assert rows.where("a >= 0 AND prediction = a AND prediction_error IS NULL").count() == 200 - bad
    nulls = str(tmp_path / "nulls")
    assert score_table(spark, model, source, nulls, on_error="null", strategy=strategy).failed == 0
    assert read(spark, nulls).where("prediction IS NULL").count() == bad


def test_parquet_and_dataframes_are_sources_too(spark: SparkSession, source: str, regressor: str, tmp_path: Path) -> None:
    parquet = str(tmp_path / "parquet")
    read(spark, source).write.parquet(parquet)
    for i, given in enumerate([parquet, read(spark, source).where("id < 200")]):
        target = str(tmp_path / f"target{i}")
        assert score_table(spark, regressor, given, target, keep=["id"]).rows == 200
        assert scored(spark, target) == pytest.approx(expected(regressor))


def test_tables_of_the_catalog_by_name(spark: SparkSession, source: str, regressor: str) -> None:
    read(spark, source).write.format("delta").mode("overwrite").saveAsTable("scoring_source")
    try:
        assert score_table(spark, regressor, "scoring_source", "scoring_target", keep=["id"]).rows == 200
        assert score_table(spark, regressor, "scoring_source", "scoring_target", keep=["id"]).rows == 200
        assert spark.table("scoring_target").count() == 400
    finally:
        spark.sql("DROP TABLE IF EXISTS scoring_source")
        spark.sql("DROP TABLE IF EXISTS scoring_target")


def test_merge_updates_rows_by_key_and_adds_the_others(spark: SparkSession, source: str, regressor: str, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    score_table(spark, regressor, source, target, keep=["id"], where="id < 50", mode="merge", keys=["id"])
    score_table(spark, regressor, source, target, keep=["id"], where="id >= 25", mode="merge", keys=["id"])
    assert read(spark, target).count() == 200
    assert scored(spark, target) == pytest.approx(expected(regressor))


def test_overwrite_partitions_replaces_those_that_get_rows(spark: SparkSession, source: str, regressor: str, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    score_table(spark, regressor, source, target, keep=["id", "day"], partition_by=["day"])
    score_table(spark, regressor, source, target, keep=["id", "day"], where="day = 'mon' AND id < 10", mode="overwrite_partitions")
    counts = {row["day"]: row["count"] for row in read(spark, target).groupBy("day").count().collect()}
    assert counts == {"mon": 5, "tue": 100}


def test_model_columns_say_who_scored_and_when(spark: SparkSession, source: str, registry: mlflow.MlflowClient, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    score_table(spark, "models:/wine@champion", source, target, keep=[], model_columns=True)
    rows = read(spark, target).select("model_version", "scored_at").distinct().collect()
    assert [row["model_version"] for row in rows] == ["wine/1"]
    assert rows[0]["scored_at"] is not None
    assert dict(read(spark, target).dtypes)["prediction"] == "bigint"


def test_columns_that_do_not_suit_are_named_before_anything_runs(spark: SparkSession, source: str, regressor: str, tmp_path: Path) -> None:
    bad = read(spark, source).select(f.col("a").cast("string"), "b", "id")
    with pytest.raises(InvalidInput, match=r"'a' is string .*'c' is missing"):
        score_table(spark, regressor, bad, str(tmp_path / "target"))
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": ["id", "nope"]}, "lacks: nope"),
        ({"prediction": "a"}, "two columns named a"),
        ({"mode": "replace"}, "mode='replace'"),
        ({"mode": "merge"}, "needs keys"),
        ({"strategy": "fast"}, "strategy='fast'"),
        ({"mode": "merge", "keys": "day", "keep": "id"}, "keys= names columns that are not written: day"),
        ({"partition_by": "day", "keep": "id"}, "partition_by= names columns that are not written: day"),
        ({"mode": "overwrite", "since": "last"}, "leaves only the newest rows"),
        ({"target": "source"}, "is source and target"),
        ({"target": "just a name"}, "a path needs a slash: write './just a name'"),
        ({"where": "nope > 1"}, "where='nope > 1' is no condition on the rows .* `nope` cannot be resolved"),
        ({"where": "id >"}, "where='id >' is no condition"),
    ],
)
def test_contradictions_are_refused(
    spark: SparkSession, source: str, regressor: str, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    given = {"target": str(tmp_path / "target"), **arguments}
    if given["target"] == "source":
        given["target"] = source
    with pytest.raises(InvalidInput, match=message):
        score_table(spark, regressor, source, **given)
    assert not (tmp_path / "target").exists()


def test_what_is_no_table_is_refused_and_left_alone(spark: SparkSession, source: str, regressor: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(InvalidInput, match="is a file"):
        score_table(spark, regressor, source, str(file))
    with pytest.raises(InvalidState, match="cannot be written"):
        score_table(spark, regressor, source, str(file / "below"))
    with pytest.raises(NotFound, match="There is no table or Parquet folder"):
        score_table(spark, regressor, str(file), str(tmp_path / "target"))
    with pytest.raises(NotFound, match=r"cannot be read as it was at version=99.*DELTA_VERSION_NOT_FOUND"):
        score_table(spark, regressor, source, str(tmp_path / "target"), version=99)
    assert file.read_text() == "precious"


def test_columns_that_parquet_may_not_have_are_mapped_in_a_new_target(spark: SparkSession, regressor: str, tmp_path: Path) -> None:
    names = ["a b", "dot.ted", "em😀ji", "semi;colon", "x=y"]
    frame = NUMBERS.head(10).assign(**{name: range(10) for name in names})
    for mode, keys in (("append", []), ("append", []), ("merge", ["a b", "dot.ted"])):
        where = None if mode == "append" else "`x=y` < 1"
        given = spark.createDataFrame(frame)
        if mode == "merge":
            spark.sql(f"DELETE FROM delta.`{tmp_path}/target` WHERE `x=y` = 0")
        score_table(spark, regressor, given, str(tmp_path / "target"), mode=mode, keys=keys, where=where, prediction="my score")  # type: ignore[arg-type]
    rows = read(spark, str(tmp_path / "target"))
    assert rows.columns == [*frame.columns, "my score"]
    assert rows.count() == 19


def test_a_target_that_lacks_columns_is_told_which(spark: SparkSession, source: str, regressor: str, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    score_table(spark, regressor, source, target, keep="id")
    with pytest.raises(InvalidInput, match=r"lacks columns that would be written: day string. Add them"):
        score_table(spark, regressor, source, target, keep=["id", "day"])
    with pytest.raises(InvalidInput, match=r"columns of other types: .*prediction:double.*To be written are: .*prediction:string"):
        score_table(spark, regressor, source, target, keep=["id"], result_type="string")
    score_table(spark, regressor, source, str(tmp_path / "days"), keep=["day"], mode="overwrite", where="id < 2")
    with pytest.raises(InvalidInput, match=r"Several rows to score have the same day. Give keys= that tell them apart"):
        score_table(spark, regressor, source, str(tmp_path / "days"), keep=["day"], mode="merge", keys=["day"])


def test_paths_are_relative_to_this_process_and_may_have_any_character(
    spark: SparkSession, source: str, regressor: str, tmp_path: Path
) -> None:
    target = "./a b/ü'`😀"
    for expected in ("scored", "nothing new"):
        assert score_table(spark, regressor, "./source", target, keep=["id"], since="last").status == expected
    assert score_table(spark, regressor, "./source", target, keep=["id"], mode="merge", keys="id").strategy == "udf"
    assert read(spark, str(tmp_path / target)).count() == 200
    assert "there is a '%' in" in score_table(spark, regressor, "./source", "./a%20b", keep=["id"]).reason
    assert read(spark, str(tmp_path / "a%20b")).count() == 200


def test_a_source_that_does_not_exist_is_named(spark: SparkSession, regressor: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no_such_table"):
        score_table(spark, regressor, "no_such_table", str(tmp_path / "target"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotFound, match=r"A path needs a slash: './folder'"):
        score_table(spark, regressor, "folder", str(tmp_path / "target"))


def test_a_target_that_is_no_delta_table_is_left_alone(spark: SparkSession, source: str, regressor: str, tmp_path: Path) -> None:
    parquet = str(tmp_path / "parquet")
    read(spark, source).write.parquet(parquet)
    with pytest.raises(InvalidInput, match="no Delta table but parquet"):
        score_table(spark, regressor, source, parquet)


@pytest.mark.parametrize("strategy", ["files", "udf"])
def test_whole_numbers_go_into_a_model_of_doubles_exactly_or_the_column_is_named(
    spark: SparkSession, regressor: str, tmp_path: Path, strategy: Any
) -> None:
    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    rows = spark.range(0, 50, 1, 1).selectExpr("id", "id * 1000 AS a", "CAST(id AS INT) AS b", "CAST(id AS SMALLINT) AS c")
    rows.write.format("delta").save(source)
    assert score_table(spark, regressor, source, target, keep=["id"], strategy=strategy).rows == 50
    wanted = mlflow.pyfunc.load_model(regressor).predict(rows.select("a", "b", "c").toPandas().astype(float))
    assert list(scored(spark, target).values()) == pytest.approx(wanted.tolist())
    spark.sql(f"UPDATE delta.`{source}` SET a = 9007199254740993 WHERE id = 7")
    with pytest.raises(InvalidState, match=r"The column .a. .int64. has whole numbers that the model's double does not hold") as failed:
        score_table(spark, regressor, source, target, keep=["id"], strategy=strategy)
    assert "9007199254740993" not in failed.value.message
    assert read(spark, target).count() == 50


def test_a_models_refusal_quotes_no_rows(spark: SparkSession, source: str, tmp_path: Path) -> None:
    whole = NUMBERS.head(3).assign(a=[1, 2, 3])
    model = save_function(tmp_path / "model", Refusing(), mlflow.models.infer_signature(whole, [1.0]))
    given = read(spark, source).selectExpr("id", "CAST(IF(id = 5, NULL, 770000 + id) AS BIGINT) AS a", "b", "c")
    with pytest.raises(InvalidState, match="Incompatible input types for column a") as failed:
        score_table(spark, model, given, str(tmp_path / "target"))
    assert "7700" not in failed.value.message and "schema of data" not in failed.value.message


class Refusing(mlflow.pyfunc.PythonModel):
    """Needs whole numbers."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        return model_input["a"]


def test_what_is_misspelt_is_told_what_there_is(
    spark: SparkSession, source: str, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = str(tmp_path / "target")
    with pytest.raises(InvalidInput, match=r"result_type='integr' is not a Spark type. Did you mean 'int'\? Types are boolean, int"):
        score_table(spark, classifier, source, target, result_type="integr")
    with pytest.raises(InvalidInput, match=r"has no method 'predict_probs'. It has: predict_proba"):
        score_table(spark, classifier, source, target, method="predict_probs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(NotFound, match=rf"no table or Parquet folder './source' \(that is '{tmp_path}/elsewhere/source'\)"):
        score_table(spark, classifier, "./source", target)


PLAIN = """
import sys
from pyspark.sql import SparkSession
from spark_tracking.scoring import score_table
builder = SparkSession.builder
spark = (builder.remote("local[1]") if sys.argv[3] == "connect" else builder.master("local[1]")).getOrCreate()
try:
    score_table(spark, sys.argv[1], "./wine", sys.argv[2])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["classic", "connect"])
def test_a_session_without_delta_is_told_how_to_get_one(regressor: str, tmp_path: Path, mode: str) -> None:
    import pyspark

    settings = {**os.environ, "SPARK_HOME": str(Path(pyspark.__file__).parent), "SPARK_LOCAL_IP": "127.0.0.1"}
    command = [sys.executable, "-c", PLAIN, regressor, str(tmp_path / "target"), mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=settings)
    assert "InvalidState This Spark session has no Delta Lake" in done.stdout, done.stdout + done.stderr[-3000:]
    assert "spark_tracking.local_spark()" in done.stdout
