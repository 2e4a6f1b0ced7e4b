"""Tracking servers as Spark tables: `format("mlflow-experiment")` and `format("mlflow")`."""
