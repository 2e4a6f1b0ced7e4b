"""The name by which Spark finds `format("mlflow-experiment")` on its own."""

from spark_tracking.sources.datasource import ExperimentSource as DefaultSource  # noqa: F401
