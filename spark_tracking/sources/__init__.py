"""Tracking servers as Spark tables: `format("mlflow-experiment")`, `format("mlflow")`, and `use`."""

from spark_tracking.sources.using import use as use

__all__ = ["use"]
