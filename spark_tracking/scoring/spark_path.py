"""The UDF path: Spark reads, calls the model as a UDF, and writes. It works for every table that Spark can read and write."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from spark_tracking.errors import InvalidInput, InvalidState
from spark_tracking.scoring import incremental
from spark_tracking.scoring.attempt import sweep
from spark_tracking.scoring.checks import unusual_name
from spark_tracking.scoring.progress import progress
from spark_tracking.scoring.ship import is_connect
from spark_tracking.scoring.source import quoted
from spark_tracking.scoring.udf import spark_function

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, DataFrameWriter, SparkSession
    from pyspark.sql.types import DataType, StructType

    from spark_tracking.scoring.work import Work

_CONFLICT = re.compile(r"DELTA_(CONCURRENT|METADATA_CHANGED|PROTOCOL_CHANGED)|Concurrent\w*Exception")
_MERGES = 10  # tries, each on what others committed meanwhile; the scores are kept


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
        answer = spark_function(work.plan, work.returned)(f.struct(*[f.col(quoted(name)) for name in work.inputs]))
        scored = rows.select(*[f.col(quoted(name)) for name in work.keep], answer.alias(work.prediction))
    if work.reports:
        scored = scored.withColumn(work.error_column, f.col(quoted(work.prediction))["error"])
        scored = scored.withColumn(work.prediction, f.col(quoted(work.prediction))["prediction"])
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
    answer = (vector_to_array(f.col(output)) if output == "probability" else f.col(output)).cast(prediction_type(work))
    result: DataFrame = scored.select(*[f.col(quoted(name)) for name in work.keep], answer.alias(work.prediction))
    return result


def write(spark: SparkSession, work: Work, scored: DataFrame, *, show: bool | None = None) -> dict[str, Any]:
    """Commit scored rows to the target, once.

    Returns:
        `version` of the target after the commit (None if another run of this job committed first), `rows` and `failed` as
        Spark counted them on the way.

    Raises:
        InvalidInput: the target lacks columns.
        InvalidState: another job changed the same rows.
    """
    _check_target(spark, work, scored.schema)
    if work.target.location:
        with suppress(Exception):  # housekeeping: where it cannot be reached, the next job may do it
            sweep(work.target.location)
    try:
        with progress(spark, f"scoring {work.source.label}", rows=None, show=show):
            counts = (_merge if work.mode == "merge" else _write)(spark, work, scored)
    except Exception as error:
        clearer = _clearer(spark, work, scored.schema, error)
        if clearer is error:
            raise
        if clearer is not None:
            raise clearer from error
        counts = None
    version = incremental.committed_version(spark, work)
    # What had been done before Delta leaves out without reading it: its counts would never come.
    return {"version": None, "rows": 0, "failed": 0} if version is None or counts is None else {**counts(), "version": version}


def _counts(work: Work) -> tuple[Any, Any]:
    from pyspark.sql import functions as f

    failed = f.col(quoted(work.error_column)).isNotNull() if work.reports else f.lit(False)
    return f.count(f.lit(1)).alias("rows"), f.count_if(failed).alias("failed")


def _clearer(spark: SparkSession, work: Work, written: StructType, error: Exception) -> Exception | None:
    """What an error of Delta's means here; None if another run of this job did the work meanwhile.

    Delta's come through py4j, Connect or delta-spark as exceptions of different classes, whose texts name Delta's own.
    """
    text = f"{type(error).__name__} {error}"
    if "DELTA_MULTIPLE_SOURCE_ROW_MATCHING" in text:
        return InvalidInput(f"Several rows to score have the same {', '.join(work.keys)}. Give keys= that tell them apart, or use where=.")
    if "DELTA_FAILED_TO_MERGE_FIELDS" in text:
        there = spark.sql(f"SELECT * FROM {work.target.sql} LIMIT 0").schema.simpleString()
        return InvalidInput(
            f"The target '{work.target.text}' has columns of other types: {there}. To be written are: {written.simpleString()}. "
            "Set result_type=, or use mode='overwrite'."
        )
    if not _conflicts(error):
        return error
    if incremental.is_done(work):
        return None
    return InvalidState(
        f"Another job changed the same rows of '{work.target.text}' at the same time, and nothing was written. Run it again."
    )


def _conflicts(error: Exception) -> bool:
    return bool(_CONFLICT.search(f"{type(error).__name__} {error}"))


def _check_target(spark: SparkSession, work: Work, written: StructType) -> None:
    if not work.target.exists or work.mode == "overwrite":
        return
    there = {name.lower() for name in spark.sql(f"SELECT * FROM {work.target.sql} LIMIT 0").columns}
    if strange := [f"{field.name} {field.dataType.simpleString()}" for field in written if field.name.lower() not in there]:
        raise InvalidInput(
            f"The target '{work.target.text}' lacks columns that would be written: {', '.join(strange)}. Add them to it "
            "(ALTER TABLE ... ADD COLUMNS), set keep= or prediction=, or use mode='overwrite'."
        )


def _write(spark: SparkSession, work: Work, scored: DataFrame) -> Callable[[], dict[str, int]]:
    from pyspark.sql import Observation

    seen = Observation()
    scored = scored.observe(seen, *_counts(work))
    writer = scored.write.format("delta").option("userMetadata", work.user_metadata("udf"))
    writer = writer.mode("append" if work.mode == "append" else "overwrite")
    if work.mode == "overwrite":
        writer = writer.option("overwriteSchema", "true")
    if work.mode == "overwrite_partitions":
        writer = writer.option("partitionOverwriteMode", "dynamic")
    if work.app_id:
        writer = writer.option("txnAppId", work.app_id).option("txnVersion", work.app_version)
    if not work.target.exists:
        writer = _new(writer, work, scored.schema)
    if work.target.is_path:
        writer.save(work.target.path)
    else:
        if not work.target.exists:  # first the table, then its rows: a table made by its first write loses the count of rows
            _make(spark, work, scored.schema)
        writer.saveAsTable(work.target.text)
    return lambda: seen.get


def _make(spark: SparkSession, work: Work, schema: StructType) -> None:
    """An empty target; if another job has made it meanwhile, nothing happens."""
    empty = _new(spark.createDataFrame([], schema).write.format("delta").mode("ignore"), work, schema)
    try:
        empty.save(work.target.path) if work.target.is_path else empty.saveAsTable(work.target.text)
    except Exception as error:
        if not _conflicts(error):
            raise


def _new(writer: DataFrameWriter, work: Work, schema: StructType) -> DataFrameWriter:
    """What only a new table is told: its partitions, and to map column names that Parquet files may not have."""
    if unusual_name(schema.names):
        writer = writer.option("delta.columnMapping.mode", "name")
    return writer.partitionBy(*work.partition_by) if work.partition_by else writer


def _merge(spark: SparkSession, work: Work, scored: DataFrame) -> Callable[[], dict[str, int]]:
    """By SQL, since delta-spark's own call needs a plug-in in Spark Connect.

    MERGE takes no options: what its commit says goes through the settings of a session of its own, which nobody else writes with.
    """
    scored.persist()  # MERGE reads its source twice, once to find the matches: score once, keep the answer
    view = f"spark_tracking_{work.token}"
    same = " AND ".join(f"target.{quoted(key)} <=> source.{quoted(key)}" for key in work.keys)
    try:
        counts = scored.agg(*_counts(work)).collect()[0].asDict()
        if not work.target.exists:  # only now, so that a job that fails leaves no empty table
            _make(spark, work, scored.schema)
        scored.createOrReplaceTempView(view)
        settings = {"spark.databricks.delta.commitInfo.userMetadata": work.user_metadata("udf")}
        if work.app_id:
            settings["spark.databricks.delta.write.txnAppId"] = work.app_id
            settings["spark.databricks.delta.write.txnVersion"] = str(work.app_version)
        merge = f"MERGE INTO {work.target.sql} AS target USING {view} AS source ON {same} "
        for last in [*[False] * (_MERGES - 1), True]:
            try:
                sql_beside(spark, settings, merge + "WHEN MATCHED THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *")
                break
            except Exception as error:
                if last or not _conflicts(error) or incremental.is_done(work):
                    raise
    finally:
        spark.catalog.dropTempView(view)
        scored.unpersist()
    return lambda: counts


def sql_beside(spark: SparkSession, settings: Mapping[str, str], statement: str) -> None:
    """Run a statement in a session that has what this one has now (settings, views, functions, files) and settings that reach no other.

    Raises:
        InvalidState: this Spark cannot make such a session.
    """
    connect = is_connect(spark)
    try:
        # The bare JVM's: a session object of PySpark would take over `rdd.toDF()` of the whole process, settings and all.
        own: Any = cast(Any, spark).cloneSession() if connect else spark._jsparkSession.cloneSession()
    except Exception as error:  # Spark Connect before 4.1 has none; a server may refuse
        raise InvalidState(
            "mode='merge' needs a session of its own, which Spark Connect has from 4.1 on. Use a newer Spark, a classic session, or "
            "mode='append' or 'overwrite'."
        ) from error
    try:
        for name, value in settings.items():
            (own.conf if connect else own.conf()).set(name, value)
        own.sql(statement)
    finally:
        if connect:
            with suppress(Exception):  # it ends by itself, too
                own.client.release_session()
                own.client.close()
