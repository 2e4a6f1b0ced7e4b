"""A lake's tables in a Spark catalog, as external Delta tables: by SQL that is printed, or run in a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spark_tracking.lake import Lake
from spark_tracking.lake.tables import BY_NAME

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def statements(lake: str, catalog: str | None = None, schema: str = "mlflow") -> list[str]:
    """The SQL that makes a lake's tables visible in a schema, which is made when there is none. Registered tables stay."""
    root = Lake.open(lake).uri.root.replace("\\", "\\\\").replace("'", "\\'")
    home = ".".join(f"`{name.replace('`', '``')}`" for name in (catalog, schema) if name)
    tables = [f"CREATE TABLE IF NOT EXISTS {home}.{name} USING DELTA LOCATION '{root}/{name}'" for name in BY_NAME]
    return [f"CREATE SCHEMA IF NOT EXISTS {home}", *tables]


def register(spark: SparkSession, lake: str, catalog: str | None = None, schema: str = "mlflow") -> list[str]:
    """Run these statements and return the tables' names. The tables are refreshed first, as raw readers see what is in them.

    Example:
        >>> register(spark, "delta:///shared/lake", schema="mlflow")
        ['mlflow.events', 'mlflow.run_metrics_history', …]
        >>> spark.sql("SELECT status, count(*) FROM mlflow.runs_latest GROUP BY status").show()
    """
    Lake.open(lake).refresh()
    for statement in statements(lake, catalog, schema):
        spark.sql(statement)
    return [".".join(part for part in (catalog, schema, name) if part) for name in BY_NAME]
