"""An MLflow run that records a scoring job: model, source, counts and rates."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spark_tracking.scoring.result import ScoreResult
    from spark_tracking.scoring.source import Place
    from spark_tracking.scoring.work import Work


def record_run(result: ScoreResult, work: Work) -> ScoreResult:
    """Log a finished job as a run of the current experiment; below the active run, if there is one.

    The source table's version is a tag as well, since MLflow's Delta source leaves version 0 out.

    Returns:
        The result with its `run_id`.
    """
    import mlflow

    facts = {**work.model.facts(), "source": result.source, "target": result.target, "mode": work.mode, "where": work.where}
    tags = {"source_version": result.source_version, "target_version": result.target_version, "job": result.job, "status": result.status}
    numbers: dict[str, float] = {"rows": result.rows, "failed_rows": result.failed, "seconds": result.seconds}
    if result.seconds:
        numbers["rows_per_second"] = result.rows / result.seconds
    with mlflow.start_run(run_name=f"score {work.model.name or 'model'}", nested=mlflow.active_run() is not None) as run:
        mlflow.log_params({name: value for name, value in {**facts, "strategy": result.strategy}.items() if value is not None})
        mlflow.log_metrics(numbers)
        mlflow.set_tags({f"spark_tracking.{name}": value for name, value in tags.items() if value is not None})
        _log_source(work)
    return replace(result, run_id=run.info.run_id)


def _log_source(work: Work) -> None:
    import mlflow
    from mlflow.data.spark_dataset import load_delta

    place, version = work.source.place, work.source.version
    if place is not None and version is not None:
        mlflow.log_input(load_delta(**_source(work, place), version=str(version)), context="scoring")


def _source(work: Work, place: Place) -> dict[str, str]:
    """As MLflow takes it, which asks Databricks for the id of any table whose catalog is not named as Spark's own."""
    from mlflow.utils.databricks_utils import is_in_databricks_runtime

    if place.is_path:
        return {"path": place.path}
    catalog = work.source.df.sparkSession.catalog
    if is_in_databricks_runtime() or "`" in place.text or place.text.count(".") > 1 or catalog.currentCatalog() != "spark_catalog":
        return {"table_name": place.text}
    name = place.text if "." in place.text else f"{catalog.currentDatabase()}.{place.text}"
    return {"table_name": f"spark_catalog.{name}"}
