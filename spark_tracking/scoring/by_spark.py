"""The strategy `udf`: Spark reads, calls the model as a UDF, and writes. It works for every table that Spark can read and write."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pyspark.sql import Observation
from pyspark.sql import functions as f

from spark_tracking.errors import InvalidInput, InvalidState
from spark_tracking.scoring.commits import Committed, user_metadata
from spark_tracking.scoring.file_rules import unusual_name
from spark_tracking.scoring.incremental import committed_version, rows_to_score
from spark_tracking.scoring.progress import progress
from spark_tracking.scoring.staging import sweep
from spark_tracking.scoring.tables import sql_name
from spark_tracking.scoring.udf import spark_function
from spark_tracking.spark.session import is_connect

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, DataFrameWriter, SparkSession

    from spark_tracking.scoring.job import Job

_CONFLICT = re.compile(r"DELTA_(CONCURRENT|METADATA_CHANGED|PROTOCOL_CHANGED)|Concurrent\w*Exception")
_MERGES = 10  # tries, each on what others committed meanwhile; the scores are kept
_SPARK_ML_COLUMNS = {"predict": "prediction", "predict_proba": "probability"}


@dataclass(frozen=True)
class SparkStrategy:
    """Any job."""

    name: ClassVar[str] = "udf"

    job: Job

    def write(self) -> Committed:
        """Score the rows and commit them.

        Raises:
            InvalidInput: the target lacks columns.
            InvalidState: another job changed the same rows.
        """
        job, scored = self.job, self._scored()
        self._check_target()
        if job.target.location:
            with suppress(Exception):  # housekeeping: where it cannot be reached, the next job may do it
                sweep(job.target.location)
        try:
            with progress(job.spark, f"scoring {job.source.label}", rows=None, show=job.request.show_progress):
                counts = (self._merge if job.request.mode == "merge" else self._write)(scored)
        except Exception as error:
            if not _conflicts(error):
                raise
            if job.backlog.is_in(job.target):  # another run of this job did the work meanwhile
                return Committed(None, 0, 0)
            raise InvalidState(
                f"Another job changed the same rows of '{job.target.text}' at the same time, and nothing was written. Run it again."
            ) from error
        version = committed_version(job.spark, job.request.target, job.token)
        # What had been done before Delta leaves out without reading it: its counts would never come.
        return Committed(None, 0, 0) if version is None else Committed(version, **counts())

    def _scored(self) -> DataFrame:
        """The rows with the columns that the target gets."""
        job, request = self.job, self.job.request
        rows = rows_to_score(job)
        rows = rows.where(request.where) if request.where else rows
        kept = [f.col(sql_name(name)) for name in job.keep]
        if job.call is None:
            transformed, answer = self._transformed(rows)
            return transformed.select(*kept, answer.cast(job.prediction).alias(request.prediction), *self._constants())
        inputs = f.struct(*[f.col(sql_name(name)) for name in job.inputs])
        scored = rows.select(*kept, spark_function(job.call, job.prediction)(inputs).alias(request.prediction))
        if request.error_column:
            answer = f.col(sql_name(request.prediction))
            scored = scored.withColumns({request.error_column: answer["error"], request.prediction: answer["prediction"]})
        return scored.select("*", *self._constants()) if request.model_columns else scored

    def _constants(self) -> list[Column]:
        return [f.lit(str(value)).cast(self.job.output[name].dataType).alias(name) for name, value in self.job.constants.items()]

    def _transformed(self, rows: DataFrame) -> tuple[DataFrame, Column]:
        """A Spark ML model's own transform, and what of it is the prediction."""
        import mlflow.spark
        from pyspark.ml.functions import vector_to_array

        model, method = self.job.model, self.job.request.method
        output = _SPARK_ML_COLUMNS.get(method)
        if output is None:
            raise InvalidInput(f"A Spark ML model has no method '{method}'. Use 'predict' or 'predict_proba'.")
        scored = mlflow.spark.load_model(str(model.path)).transform(rows)
        if output not in scored.columns:
            raise InvalidInput(f"The Spark ML model {model.label} gives no column '{output}'; it gives: {', '.join(scored.columns)}.")
        return scored, vector_to_array(f.col(output)) if output == "probability" else f.col(output)

    def _counts(self) -> tuple[Column, Column]:
        column = self.job.request.error_column
        failed = f.col(sql_name(column)).isNotNull() if column else f.lit(False)
        return f.count(f.lit(1)).alias("rows"), f.count_if(failed).alias("failed")

    def _check_target(self) -> None:
        job = self.job
        if not job.target.exists or job.request.mode == "overwrite":
            return
        there = {name.lower() for name in job.target.empty(job.spark).columns}
        if strange := [f"{field.name} {field.dataType.simpleString()}" for field in job.output if field.name.lower() not in there]:
            raise InvalidInput(
                f"The target '{job.target.text}' lacks columns that would be written: {', '.join(strange)}. Add them to it "
                "(ALTER TABLE ... ADD COLUMNS), set keep= or prediction=, or use mode='overwrite'."
            )

    def _writer(self, written: DataFrame, **facts: Any) -> DataFrameWriter:
        """A writer whose commit says what it is; its options reach no other write."""
        writer = written.write.format("delta").mode("append").option("userMetadata", self._metadata(**facts))
        if transaction := self.job.backlog.transaction:
            writer = writer.option("txnAppId", transaction[0]).option("txnVersion", transaction[1])
        return writer

    def _metadata(self, **facts: Any) -> str:
        return user_metadata({**self.job.facts(self.name), **facts})

    def _save(self, writer: DataFrameWriter) -> None:
        target = self.job.target
        writer.save(target.path) if target.is_path else writer.saveAsTable(target.text)

    def _write(self, scored: DataFrame) -> Callable[[], dict[str, int]]:
        target, mode, seen = self.job.target, self.job.request.mode, Observation()
        writer = self._writer(scored.observe(seen, *self._counts()))
        if mode == "overwrite":
            writer = writer.mode("overwrite").option("overwriteSchema", "true")
        if mode == "overwrite_partitions":
            writer = writer.mode("overwrite").option("partitionOverwriteMode", "dynamic")
        if not target.exists:
            writer = self._new(writer)
            if not target.is_path:  # first the table, then its rows: a table made by its first write loses the count of rows
                self._make()
        self._save(writer)
        return lambda: seen.get

    def _make(self) -> None:
        """An empty target; if another job has made it meanwhile, nothing happens."""
        try:
            self._save(self._new(self.job.spark.createDataFrame([], self.job.output).write.format("delta").mode("ignore")))
        except Exception as error:
            if not _conflicts(error):
                raise

    def _new(self, writer: DataFrameWriter) -> DataFrameWriter:
        """What only a new table is told: its partitions, and to map column names that Parquet files may not have."""
        if unusual_name(self.job.output.names):
            writer = writer.option("delta.columnMapping.mode", "name")
        return writer.partitionBy(*self.job.request.partition_by) if self.job.request.partition_by else writer

    def _merge(self, scored: DataFrame) -> Callable[[], dict[str, int]]:
        """By SQL, since delta-spark's own call needs a plug-in in Spark Connect.

        MERGE takes no options: what its commit says goes through the settings of a session of its own, which nobody else writes with.
        Where there is none, a commit without rows says it right after. Killed in between, the next run merges the same rows again.
        """
        job, spark = self.job, self.job.spark
        view = f"spark_tracking_{job.token}"
        scored.persist()  # MERGE reads its source twice, once to find the matches: score once, keep the answer
        try:
            counts: dict[str, int] = scored.agg(*self._counts()).collect()[0].asDict()
            if not job.target.exists:  # only now, so that a job that fails leaves no empty table
                self._make()
            scored.createOrReplaceTempView(view)
            with session_beside(spark, self._settings()) as beside:
                for last in [*[False] * (_MERGES - 1), True]:
                    try:
                        (beside or spark).sql(self._merge_statement(view))
                        break
                    except Exception as error:
                        if last or not _conflicts(error) or job.backlog.is_in(job.target):
                            raise
            if beside is None:
                self._save(self._writer(self._no_rows(), **counts))
        finally:
            spark.catalog.dropTempView(view)
            scored.unpersist()
        return lambda: counts

    def _merge_statement(self, view: str) -> str:
        names = [sql_name(name) for name in self.job.output.names]  # by name: a target may have more
        same = " AND ".join(f"target.{key} <=> source.{key}" for key in map(sql_name, self.job.request.keys))
        return (
            f"MERGE INTO {self.job.target.sql} AS target USING {view} AS source ON {same} "
            f"WHEN MATCHED THEN UPDATE SET {', '.join(f'target.{name} = source.{name}' for name in names)} "
            f"WHEN NOT MATCHED THEN INSERT ({', '.join(names)}) VALUES ({', '.join(f'source.{name}' for name in names)})"
        )

    def _no_rows(self) -> DataFrame:
        """None of the target's rows, without the columns that Delta fills by itself."""
        target, written = self.job.target.empty(self.job.spark), {name.lower() for name in self.job.output.names}
        return target.select(*[sql_name(field.name) for field in target.schema if field.name.lower() in written or not field.nullable])

    def _settings(self) -> dict[str, str]:
        settings = {"commitInfo.userMetadata": self._metadata()}
        if transaction := self.job.backlog.transaction:
            settings |= {"write.txnAppId": transaction[0], "write.txnVersion": str(transaction[1])}
        return {f"spark.databricks.delta.{name}": value for name, value in settings.items()}


def _conflicts(error: Exception) -> bool:
    return bool(_CONFLICT.search(f"{type(error).__name__} {error}"))


@contextmanager
def session_beside(spark: SparkSession, settings: dict[str, str]) -> Iterator[Any]:
    """A session that has what this one has now (views, functions, files, settings) and settings that reach no other; None where Spark
    cannot make one: Connect before 4.1, and servers that refuse."""
    connect = is_connect(spark)
    try:
        # The bare JVM's: a session object of PySpark would take over `rdd.toDF()` of the whole process, settings and all.
        beside = cast(Any, spark).cloneSession() if connect else spark._jsparkSession.cloneSession()
    except Exception:
        beside = None
    if beside is None:
        yield None
        return
    try:
        for name, value in settings.items():
            (beside.conf if connect else beside.conf()).set(name, value)
        yield beside
    finally:
        if connect:
            with suppress(Exception):  # it ends by itself, too
                beside.client.release_session()
                beside.client.close()
