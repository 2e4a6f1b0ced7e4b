"""The UDF path: Spark reads, calls the model as a UDF, and writes. It works for every table that Spark can read and write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from spark_tracking.errors import InvalidInput
from spark_tracking.scoring.inputs import input_names
from spark_tracking.scoring.udf import spark_function

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructType

    from spark_tracking.scoring.work import Work


def prediction_type(work: Work) -> DataType:
    """The Spark type of the prediction column."""
    from pyspark.sql.types import ArrayType, DoubleType, StructType

    if work.returned is None:
        return DoubleType() if work.method == "predict" else ArrayType(DoubleType())
    if work.reports:
        assert isinstance(work.returned, StructType)
        return work.returned["prediction"].dataType
    return work.returned


def predictions(spark: SparkSession, work: Work, rows: DataFrame) -> DataFrame:
    """The rows with the columns that the target gets."""
    from pyspark.sql import functions as f

    rows = rows.where(work.where) if work.where else rows
    if work.plan is None:
        scored = _transformed(work, rows)
    else:
        assert work.returned is not None
        names = input_names(work.model, rows.schema)
        answer = spark_function(work.plan, work.returned)(f.struct(*[f.col(_quoted(name)) for name in names]))
        scored = rows.select(*[f.col(_quoted(name)) for name in work.keep], answer.alias(work.prediction))
    if work.reports:
        scored = scored.withColumn(work.error_column, f.col(_quoted(work.prediction))["error"])
        scored = scored.withColumn(work.prediction, f.col(_quoted(work.prediction))["prediction"])
    if work.model_columns:
        started = f.lit(work.started.isoformat()).cast("timestamp")
        scored = scored.withColumns({"model_version": f.lit(work.stamp()), "scored_at": started})
    return scored


def _transformed(work: Work, rows: DataFrame) -> DataFrame:
    """A Spark ML model's own transform."""
    import mlflow.spark
    from pyspark.ml.functions import vector_to_array
    from pyspark.sql import functions as f

    output = {"predict": "prediction", "predict_proba": "probability"}.get(work.method)
    if output is None:
        raise InvalidInput(f"A Spark ML model has no method '{work.method}'. Use 'predict' or 'predict_proba'.")
    scored = mlflow.spark.load_model(str(work.model.path)).transform(rows)
    if output not in scored.columns:
        raise InvalidInput(f"The Spark ML model {work.model.label} gives no column '{output}'; it gives: {', '.join(scored.columns)}.")
    answer = vector_to_array(f.col(output)) if output == "probability" else f.col(output).cast("double")
    result: DataFrame = scored.select(*[f.col(_quoted(name)) for name in work.keep], answer.alias(work.prediction))
    return result


def write(spark: SparkSession, work: Work, scored: DataFrame, *, show: bool | None = None) -> dict[str, Any]:
    """Commit scored rows to the target, once.

    Returns:
        `rows` and `failed` as Spark counted them on the way.
    """
    from pyspark.sql import Observation
    from pyspark.sql import functions as f

    seen = Observation()
    failed = f.col(_quoted(work.error_column)).isNotNull() if work.reports else f.lit(False)
    counted = scored.observe(seen, f.count(f.lit(1)).alias("rows"), f.count_if(failed).alias("failed"))
    if work.mode == "merge" and work.target.exists:
        # MERGE reads its source twice, once to find the matches: score once, keep the answer.
        counted.persist()
        try:
            _merge(spark, work, counted)
        finally:
            counted.unpersist()
    else:
        _write(spark, work, counted)
    return dict(seen.get)


def _write(spark: SparkSession, work: Work, scored: DataFrame) -> None:
    writer = scored.write.format("delta").option("userMetadata", work.user_metadata("udf"))
    writer = writer.mode("append" if work.mode in ("append", "merge") else "overwrite")
    if work.mode == "overwrite":
        writer = writer.option("overwriteSchema", "true")
    if work.mode == "overwrite_partitions":
        writer = writer.option("partitionOverwriteMode", "dynamic")
    if work.app_id:
        writer = writer.option("txnAppId", work.app_id).option("txnVersion", work.app_version)
    if work.partition_by and not work.target.exists:
        writer = writer.partitionBy(*work.partition_by)
    if work.target.is_path:
        writer.save(work.target.text)
        return
    if not work.target.exists:  # first the table, then its rows: a table made by its first write loses the count of rows
        create_table(spark, work, scored.schema)
    writer.saveAsTable(work.target.text)


def create_table(spark: SparkSession, work: Work, schema: StructType) -> None:
    """Make a new table of the catalog, empty."""
    writer = spark.createDataFrame([], schema).write.format("delta").mode("ignore")
    (writer.partitionBy(*work.partition_by) if work.partition_by else writer).saveAsTable(work.target.text)


def _merge(spark: SparkSession, work: Work, scored: DataFrame) -> None:
    """By SQL, since delta-spark's own call needs a plug-in in Spark Connect."""
    view = f"spark_tracking_{work.token}"
    same = " AND ".join(f"target.{_quoted(key)} <=> source.{_quoted(key)}" for key in work.keys)
    scored.createOrReplaceTempView(view)
    try:
        with _commit_settings(spark, work):
            spark.sql(
                f"MERGE INTO {work.target.sql} AS target USING {view} AS source ON {same} "
                "WHEN MATCHED THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *"
            )
    finally:
        spark.catalog.dropTempView(view)


@contextmanager
def _commit_settings(spark: SparkSession, work: Work) -> Iterator[None]:
    """MERGE takes no options, so what its commit says goes through the session's settings."""
    settings = {"spark.databricks.delta.commitInfo.userMetadata": work.user_metadata("udf")}
    if work.app_id:
        settings["spark.databricks.delta.write.txnAppId"] = work.app_id
        settings["spark.databricks.delta.write.txnVersion"] = str(work.app_version)
    before = {name: spark.conf.get(name, None) for name in settings}
    for name, value in settings.items():
        spark.conf.set(name, value)
    try:
        yield
    finally:
        for name, old in before.items():
            spark.conf.unset(name) if old is None else spark.conf.set(name, old)


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
