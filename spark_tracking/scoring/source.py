"""What a job reads: a Delta table pinned to a version, another table or Parquet folder, or a DataFrame."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from spark_tracking.errors import InvalidInput, NotFound
from spark_tracking.scoring.ship import is_connect

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class Place:
    """Where a table is, as Spark knows it.

    Attributes:
        text: what the caller gave: a path, a cloud URI or a table name.
        is_path: whether that is a path.
        location: the folder or URI of the files; None for a table that does not exist or hides its place.
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
    def sql(self) -> str:
        """How SQL names it."""
        return f"delta.`{self.location}`" if self.is_path else self.text


@dataclass(frozen=True)
class Source:
    """What a job reads, pinned.

    Attributes:
        df: the rows, without any filter.
        label: how messages, commits and runs name it.
        place: where it is; None for a DataFrame.
        version: of a Delta table; None otherwise.
    """

    df: DataFrame
    label: str
    place: Place | None = None
    version: int | None = None

    @property
    def is_delta(self) -> bool:
        """Whether this is a Delta table with versions."""
        return self.version is not None


def find_place(spark: SparkSession, text: str) -> Place:
    """Find a table by path or name; it may not exist yet.

    A text with a slash or a scheme is a path, `delta.`/some/path`` too; anything else is a name in the catalog.
    """
    if text.startswith("delta.`") and text.endswith("`"):
        text = text[len("delta.`") : -1]
    if "/" not in text and "\\" not in text:
        return _named(spark, text)
    if (folder := local_folder(text)) and not folder.exists():  # Spark would log pages about it
        return Place(text, True, text, None)
    if _is_delta(spark, text):
        return Place(text, True, text, "delta")
    return Place(text, True, text, "parquet" if _has_parquet(spark, text) else None)


def _named(spark: SparkSession, name: str) -> Place:
    if not spark.catalog.tableExists(name):
        return Place(name, False, None, None)
    rows = {row[0]: row[1] for row in spark.sql(f"DESCRIBE TABLE EXTENDED {name}").collect()}
    kind = "view" if rows.get("Type") == "VIEW" else str(rows.get("Provider", "table")).lower()
    return Place(name, False, rows.get("Location"), kind)


def local_folder(text: str) -> Path | None:
    """The folder that a path or `file:` URI means; None for a cloud URI."""
    if text.startswith("file:"):
        return Path(unquote(urlsplit(text).path))
    return None if "://" in text or text.startswith("dbfs:") else Path(text)


def _is_delta(spark: SparkSession, path: str) -> bool:
    """By SQL, since delta-spark's own call needs a plug-in in Spark Connect."""
    if folder := local_folder(path):
        return (folder / "_delta_log").is_dir()
    try:
        return bool(spark.sql(f"DESCRIBE DETAIL delta.`{path}`").collect())
    except Exception:
        return False


def _has_parquet(spark: SparkSession, path: str) -> bool:
    try:
        spark.read.parquet(path).schema  # noqa: B018 - reads a footer, and on Connect it is what fails
    except Exception:
        return False
    return True


def find_source(spark: SparkSession, source: str | DataFrame, version: int | None, timestamp: str | dt.datetime | None) -> Source:
    """Pin what a job reads.

    Args:
        spark: the session.
        source: Delta table or Parquet folder by path, table by name, or a DataFrame.
        version: the Delta table's version; None: the newest now.
        timestamp: instead of a version, as it was at that time.

    Raises:
        NotFound: there is no such table.
        InvalidInput: version and timestamp together, or for something that has no versions.
    """
    if version is not None and timestamp is not None:
        raise InvalidInput(f"version={version} and timestamp='{timestamp}' exclude each other. Give one of them.")
    if not isinstance(source, str):
        return _unversioned(Source(source, "a DataFrame"), version, timestamp)
    place = find_place(spark, source)
    if not place.exists:
        raise NotFound(f"There is no table or Parquet folder '{source}'. Give a path, or a name that the catalog knows.")
    if place.format != "delta":
        df = spark.read.parquet(place.text) if place.is_path else spark.table(place.text)
        return _unversioned(Source(df, source, place), version, timestamp)
    pinned = _version(spark, place, version, timestamp)
    return Source(read_version(spark, place, pinned), source, place, pinned)


def read_version(spark: SparkSession, place: Place, version: int) -> DataFrame:
    """A Delta table as of a version."""
    reader = spark.read.format("delta").option("versionAsOf", version)
    return reader.load(place.text) if place.is_path else reader.table(place.text)


def _unversioned(source: Source, version: int | None, timestamp: Any) -> Source:
    if version is not None or timestamp is not None:
        raise InvalidInput(f"version and timestamp need a Delta table; {source.label} has no versions. Leave them out.")
    return source


def _version(spark: SparkSession, place: Place, version: int | None, timestamp: str | dt.datetime | None) -> int:
    if version is not None:
        return version
    commits = spark.sql(f"DESCRIBE HISTORY {place.sql}" + ("" if timestamp is not None else " LIMIT 1")).select("version", "timestamp")
    if timestamp is None:
        return int(commits.collect()[0]["version"])
    found = commits.where(commits["timestamp"] <= str(timestamp)).agg({"version": "max"}).collect()[0][0]
    if found is None:
        raise NotFound(f"The table '{place.text}' has no version as old as {timestamp}. Give a later time.")
    return int(found)


def default_parallelism(spark: SparkSession) -> int:
    """How many tasks the session runs at once; on Connect, where nothing tells, the shuffle partitions."""
    if is_connect(spark):
        return int(spark.conf.get("spark.sql.shuffle.partitions") or 8)
    return spark.sparkContext.defaultParallelism
