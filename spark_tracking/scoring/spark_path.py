"""The UDF path: Spark reads, calls the model as a UDF, and writes. It works for every table that Spark can read and write."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    writer = _writer(work, scored, work.user_metadata("udf")).mode("append" if work.mode == "append" else "overwrite")
    if work.mode == "overwrite":
        writer = writer.option("overwriteSchema", "true")
    if work.mode == "overwrite_partitions":
        writer = writer.option("partitionOverwriteMode", "dynamic")
    if not work.target.exists:
        writer = _new(writer, work, scored.schema)
        if not work.target.is_path:  # first the table, then its rows: a table made by its first write loses the count of rows
            _make(spark, work, scored.schema)
    _save(writer, work)
    return lambda: seen.get


def _writer(work: Work, rows: DataFrame, metadata: str) -> DataFrameWriter:
    """A writer whose commit says what it is; its options reach no other write."""
    writer = rows.write.format("delta").option("userMetadata", metadata)
    return writer.option("txnAppId", work.app_id).option("txnVersion", work.app_version) if work.app_id else writer


def _save(writer: DataFrameWriter, work: Work) -> None:
    writer.save(work.target.path) if work.target.is_path else writer.saveAsTable(work.target.text)


def _make(spark: SparkSession, work: Work, schema: StructType) -> None:
    """An empty target; if another job has made it meanwhile, nothing happens."""
    empty = _new(spark.createDataFrame([], schema).write.format("delta").mode("ignore"), work, schema)
    try:
        _save(empty, work)
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
    Where there is none, a commit without rows says it right after. Killed in between, the next run merges the same rows again.
    """
    scored.persist()  # MERGE reads its source twice, once to find the matches: score once, keep the answer
    view = f"spark_tracking_{work.token}"
    same = " AND ".join(f"target.{quoted(key)} <=> source.{quoted(key)}" for key in work.keys)
    names = [quoted(name) for name in scored.columns]  # by name: a target may have more
    update = ", ".join(f"target.{name} = source.{name}" for name in names)
    merge = (
        f"MERGE INTO {work.target.sql} AS target USING {view} AS source ON {same} WHEN MATCHED THEN UPDATE SET {update} "
        f"WHEN NOT MATCHED THEN INSERT ({', '.join(names)}) VALUES ({', '.join(f'source.{name}' for name in names)})"
    )
    try:
        counts: dict[str, int] = scored.agg(*_counts(work)).collect()[0].asDict()
        if not work.target.exists:  # only now, so that a job that fails leaves no empty table
            _make(spark, work, scored.schema)
        scored.createOrReplaceTempView(view)
        with session_beside(spark) as beside:
            if beside is not None:
                for name, value in _settings(work).items():
                    beside.conf().set(name, value) if callable(beside.conf) else beside.conf.set(name, value)
            for last in [*[False] * (_MERGES - 1), True]:
                try:
                    (beside or spark).sql(merge)
                    break
                except Exception as error:
                    if last or not _conflicts(error) or incremental.is_done(work):
                        raise
        if beside is None:
            _save(_writer(work, _no_rows(spark, work, scored), work.user_metadata("udf", **counts)).mode("append"), work)
    finally:
        spark.catalog.dropTempView(view)
        scored.unpersist()
    return lambda: counts


def _no_rows(spark: SparkSession, work: Work, scored: DataFrame) -> DataFrame:
    """None of the target's rows, without the columns that Delta fills by itself."""
    target = spark.sql(f"SELECT * FROM {work.target.sql} LIMIT 0")
    written = {name.lower() for name in scored.columns}
    return target.select(*[quoted(field.name) for field in target.schema if field.name.lower() in written or not field.nullable])


def _settings(work: Work) -> dict[str, str]:
    settings = {"commitInfo.userMetadata": work.user_metadata("udf")}
    if work.app_id:
        settings |= {"write.txnAppId": work.app_id, "write.txnVersion": str(work.app_version)}
    return {f"spark.databricks.delta.{name}": value for name, value in settings.items()}


@contextmanager
def session_beside(spark: SparkSession) -> Iterator[Any]:
    """A session that has what this one has now (settings, views, functions, files), whose settings reach no other; None where Spark
    cannot make one: Connect before 4.1, and servers that refuse."""
    connect = is_connect(spark)
    try:
        # The bare JVM's: a session object of PySpark would take over `rdd.toDF()` of the whole process, settings and all.
        beside = cast(Any, spark).cloneSession() if connect else spark._jsparkSession.cloneSession()
    except Exception:
        beside = None
    try:
        yield beside
    finally:
        if connect and beside is not None:
            with suppress(Exception):  # it ends by itself, too
                beside.client.release_session()
                beside.client.close()
