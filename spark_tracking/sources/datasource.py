"""The data sources, as Spark's Python data source API wants them (https://spark.apache.org/docs/latest/api/python/tutorial/sql/python_data_source.html).

None of this runs in the user's process. A source is made and asked for its schema in a planner process that Spark starts;
what it finds there travels, pickled, to where partitions are planned and read. Spark plans once per `load()` and reads once
per action, so a partition is a key range, which stays true whatever is logged in between, and `read` looks at the server as
it is then. Filters arrive as an option only: Spark would keep the rows that `pushFilters` leaves out from later actions, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import StructType

from spark_tracking.config import temporary_variables
from spark_tracking.errors import InvalidInput
from spark_tracking.readers import Range, open_reader
from spark_tracking.readers.schemas import TABLES
from spark_tracking.sources.defaults import Defaults, sent_defaults
from spark_tracking.sources.options import Request, parse_options
from spark_tracking.spark.worker import jvm, sentence_first, settle

SLICE_ROWS = 10_000
SLICE_BYTES = 64 << 20


class MlflowSource(DataSource):
    """Every table of a tracking server: `spark.read.format("mlflow").load("<table>")`.

    Tables, columns and options: docs/reading.md. Partitions are ranges of run ids (or of start times, over REST).

    Example:
        >>> spark.read.format("mlflow").option("experiment_ids", "1").load("run_metrics_history")
    """

    table: ClassVar[str | None] = None
    defaults: ClassVar[Defaults] = Defaults()
    _said: Defaults | None = None
    _request: Request | None = None

    @classmethod
    def name(cls) -> str:
        return "mlflow"

    @sentence_first()
    def schema(self) -> StructType:
        """The table's columns, after checking all that can be checked before a task runs."""
        return from_arrow_schema(self._plan().query.spec.schema)

    @sentence_first()
    def reader(self, schema: StructType) -> DataSourceReader:
        """The reader of the columns in `schema`."""
        if self._request is None and not self.options:
            # Spark asks for the schema of whatever is loaded, but not of a table in its catalog.
            raise InvalidInput(
                "This table was made by CREATE TABLE … USING, and Spark has lost its options: it could only show some other experiment. "
                f"Make a view instead: CREATE TEMPORARY VIEW name USING `{self.name()}` OPTIONS (path '…'), or df.createOrReplaceTempView."
            )
        request = self._plan()
        columns = request.query.spec.schema
        for column in schema.names:
            if column not in columns.names:
                raise InvalidInput(f"The table '{request.query.table}' has no column '{column}'. Columns: {', '.join(columns.names)}.")
        return MlflowReader(request, self._defaults.variables, schema.names)

    @property
    def _defaults(self) -> Defaults:
        if self._said is None:
            self._said = self.defaults if self.defaults.used else sent_defaults() or self.defaults
        return self._said

    def _plan(self) -> Request:
        if self._request is None:
            request = parse_options(self.options, self.table, self._defaults)
            with temporary_variables(self._defaults.variables):
                query = open_reader(request.tracking_uri).resolve(request.query)
            self._request = Request(request.tracking_uri, query, request.partitions, request.requests_per_second)
            settle()
        return self._request


class ExperimentSource(MlflowSource):
    """The runs of experiments, with the schema and calls of Databricks' source: `spark.read.format("mlflow-experiment").load("1")`.

    `load()` takes the active experiment, `load("1,2")` several ids. Options as for `mlflow`; docs/reading.md.

    Example:
        >>> df = spark.read.format("mlflow-experiment").load("1")
        >>> df.filter("metrics.loss < 0.01 AND params.learning_rate > '0.001'").orderBy("metrics.acc")
    """

    table = "runs"

    @classmethod
    def name(cls) -> str:
        return "mlflow-experiment"


@dataclass
class MlflowPartition(InputPartition):
    """A key range, and how many requests a second its task may make: a task of the `jvm` where it was planned has
    `requests_per_second` in common with all others of it; one elsewhere knows of no other and takes its `share`.
    """

    range: Range
    jvm: tuple[str, int] | None = None
    share: float | None = None


class MlflowReader(DataSourceReader):
    """Reads key ranges of one table. Holds plain values only, since Spark pickles it."""

    def __init__(self, request: Request, variables: Mapping[str, str], columns: list[str]) -> None:
        self._request = request
        self._variables = dict(variables)
        self._columns = columns

    @sentence_first()
    def partitions(self) -> list[InputPartition]:
        """Ranges that cover the whole key space, of about equal amounts of today's data."""
        request = self._request
        with temporary_variables(self._variables):
            reader = open_reader(request.tracking_uri, requests_per_second=request.requests_per_second)
            ranges = reader.split(request.query, request.partitions)
        share = request.requests_per_second and request.requests_per_second / len(ranges)
        settle()
        return [MlflowPartition(range, jvm(), share) for range in ranges]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """The rows of a range as of now."""
        assert isinstance(partition, MlflowPartition)
        schema = TABLES[self._request.query.table].schema
        columns = pa.schema([schema.field(name) for name in self._columns])
        at_home = partition.jvm is not None and partition.jvm == jvm()
        rate = self._request.requests_per_second if at_home else partition.share
        with sentence_first(), temporary_variables(self._variables):
            reader = open_reader(self._request.tracking_uri, requests_per_second=rate)
            for batch in reader.read(self._request.query, partition.range):
                rows = max(1, min(SLICE_ROWS, SLICE_BYTES * batch.num_rows // max(1, batch.nbytes)))
                for start in range(0, batch.num_rows, rows):
                    yield batch.slice(start, rows).select(columns.names)
        settle()
