"""Tables as Spark knows them: where one is that is given by path or name, and what a job reads, pinned to a version."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pyspark.errors import AnalysisException, ParseException, PySparkException

from spark_tracking.delta import files as delta_files
from spark_tracking.errors import InvalidInput, NotFound
from spark_tracking.scoring.spark_errors import one_line
from spark_tracking.spark.session import is_connect

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class TableRef:
    """A table, which may not exist yet.

    Attributes:
        text: what the caller gave: a path, a cloud URI or a table name.
        location: the folder or URI of the files as clients without Spark take it, local ones absolute; None where Spark alone knows.
        format: `delta`, `parquet`, ...; None for a table that does not exist.
    """

    text: str
    is_path: bool
    location: str | None
    format: str | None

    @property
    def exists(self) -> bool:
        """Whether there is a table or folder."""
        return self.format is not None

    @property
    def path(self) -> str:
        """Where Spark reads and writes what is given by path."""
        return self.location or self.text

    @property
    def sql(self) -> str:
        """How SQL names it."""
        return f"delta.{sql_name(self.path)}" if self.is_path else self.text

    def read(self, spark: SparkSession, version: int) -> DataFrame:
        """A Delta table as of a version."""
        reader = spark.read.format("delta").option("versionAsOf", version)
        return reader.load(self.path) if self.is_path else reader.table(self.text)

    def empty(self, spark: SparkSession) -> DataFrame:
        """None of its rows."""
        return spark.sql(f"SELECT * FROM {self.sql} LIMIT 0")


@dataclass(frozen=True)
class PinnedSource:
    """What a job reads, without any filter; `label` is how messages, commits and runs name it."""

    df: DataFrame
    label: str
    table: TableRef | None = None  # none for a DataFrame
    version: int | None = None  # of a Delta table


def sql_name(name: str) -> str:
    """A name as SQL takes it, whatever characters are in it."""
    return "`" + name.replace("`", "``") + "`"


def find_table(spark: SparkSession, text: str) -> TableRef:
    """Find a table by path or name; it may not exist yet.

    A text with a slash or a scheme is a path, `delta.`/some/path`` too; anything else is a name in the catalog.
    """
    if text.startswith("delta.`") and text.endswith("`"):
        text = text[len("delta.`") : -1]
    if "/" not in text and "\\" not in text:
        return _named(spark, text)
    folder = _local_folder(spark, text)
    if folder is None:
        location = _delta_location(spark, text)
        found = "delta" if location else "parquet" if _has_parquet(spark, text) else None
        return TableRef(text, True, location or (text if "://" in text else None), found)
    if any(file.suffix in (".json", ".parquet") for file in folder.glob("_delta_log/*")):  # Spark's failed first write leaves it empty
        return TableRef(text, True, str(folder), "delta")
    # What does not exist, or is a file of another kind, is not asked of Spark, which would log pages about it.
    worth_asking = folder.exists() and (folder.is_dir() or folder.suffix == ".parquet") and not (folder / "_delta_log").is_dir()
    return TableRef(text, True, str(folder), "parquet" if worth_asking and _has_parquet(spark, str(folder)) else None)


def _named(spark: SparkSession, name: str) -> TableRef:
    try:
        if not spark.catalog.tableExists(name):
            return TableRef(name, False, None, None)
        rows = {row[0]: row[1] for row in spark.sql(f"DESCRIBE TABLE EXTENDED {name}").collect()}
    except (AnalysisException, ParseException) as error:
        raise InvalidInput(f"'{name}' is no name of a table, and a path needs a slash: write './{name}'.") from error
    kind = "view" if rows.get("Type") == "VIEW" else str(rows.get("Provider", "table")).lower()
    return TableRef(name, False, _without_scheme(rows["Location"]) if rows.get("Location") else None, kind)


def _local_folder(spark: SparkSession, text: str) -> Path | None:
    """The folder of this machine that a path means for certain; None for a URI, and where Spark's paths may be elsewhere."""
    if text.startswith("file:"):
        return Path(_without_scheme(text))
    if "://" in text or text.startswith("dbfs:") or is_connect(spark):
        return None
    return Path(text).absolute() if _default_file_system(spark.sparkContext).startswith("file:") else None


@lru_cache(maxsize=4)
def _default_file_system(context: Any) -> str:
    """Where paths without a scheme are: hdfs:// on a cluster of Hadoop's, dbfs: on Databricks."""
    return str(context._jsc.hadoopConfiguration().get("fs.defaultFS"))


def _without_scheme(uri: str) -> str:
    return unquote(urlsplit(uri).path) if uri.startswith("file:") else uri


def _delta_location(spark: SparkSession, path: str) -> str | None:
    """Where a Delta table is; by SQL, since delta-spark's own call needs a plug-in in Spark Connect."""
    try:
        detail = spark.sql(f"DESCRIBE DETAIL delta.{sql_name(path)}").collect()[0]
    except PySparkException:
        return None
    return _without_scheme(detail["location"]) if detail["format"] == "delta" else None


def _has_parquet(spark: SparkSession, path: str) -> bool:
    try:
        spark.read.parquet(path).schema  # noqa: B018 - reads a footer, and on Connect it is what fails
    except Exception:  # there is none, or it cannot be read: Spark has several for either
        return False
    return True


def pin_source(spark: SparkSession, source: str | DataFrame, version: int | None, timestamp: str | dt.datetime | None) -> PinnedSource:
    """Pin what a job reads: a Delta table (None: its newest version now), another table or Parquet folder, or a DataFrame.

    Raises:
        NotFound: there is no such table, or no such version of it.
        InvalidInput: version and timestamp together, or for something that has no versions.
    """
    if version is not None and timestamp is not None:
        raise InvalidInput(f"version={version} and timestamp='{timestamp}' exclude each other. Give one of them.")
    label, table = (source, find_table(spark, source)) if isinstance(source, str) else ("a DataFrame", None)
    if table and not table.exists:
        hint = f"A path needs a slash: './{source}'." if Path(label).exists() else "Give a path, or a name that the catalog knows."
        where = f" (that is '{table.location}')" if table.location not in (None, source) else ""
        raise NotFound(f"There is no table or Parquet folder '{source}'{where}. {hint}")
    if table and table.format == "delta":
        try:
            pinned = _version(spark, table, version, timestamp)
            df = table.read(spark, pinned)
            df.schema  # noqa: B018 - on Connect it is what asks
        except PySparkException as error:
            raise NotFound(f"'{source}' cannot be read as it was at version={version}, timestamp={timestamp}: {one_line(error)}") from error
        return PinnedSource(df, label, table, pinned)
    if version is not None or timestamp is not None:
        raise InvalidInput(f"version and timestamp need a Delta table; {label} has no versions. Leave them out.")
    if isinstance(source, str):
        assert table is not None
        source = spark.read.parquet(table.path) if table.is_path else spark.table(table.text)
    return PinnedSource(source, label, table)


def _version(spark: SparkSession, table: TableRef, version: int | None, timestamp: str | dt.datetime | None) -> int:
    if version is not None:
        return version
    if timestamp is None and not is_connect(spark) and (newest := delta_files.newest_version(table.location)) is not None:
        return newest  # without a job of Spark's
    commits = spark.sql(f"DESCRIBE HISTORY {table.sql}" + ("" if timestamp is not None else " LIMIT 1")).select("version", "timestamp")
    if timestamp is None:
        return int(commits.collect()[0]["version"])
    found = commits.where(commits["timestamp"] <= str(timestamp)).agg({"version": "max"}).collect()[0][0]
    if found is None:
        raise NotFound(f"The table '{table.text}' has no version as old as {timestamp}. Give a later time.")
    return int(found)
