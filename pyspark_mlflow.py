"""The name by which Spark finds `format("mlflow")` on its own."""

from spark_tracking.sources.datasource import MlflowSource as DefaultSource  # noqa: F401
