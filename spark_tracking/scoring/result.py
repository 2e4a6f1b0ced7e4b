"""What a scoring job did, and the MLflow run that records it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_tracking.scoring.commits import Committed
    from spark_tracking.scoring.job import Job
    from spark_tracking.scoring.tables import TableRef


@dataclass(frozen=True)
class ScoreResult:
    """What a scoring job did.

    Attributes:
        status: `scored`, or `nothing new` where the job had done this work before.
        target, target_version: path or name, and Delta version after the commit; None if nothing was committed.
        rows, failed: rows written, and of these those whose error was reported (with `on_error="report"`).
        seconds: wall time of the whole call.
        strategy, reason: `files` or `udf`, and why.
        model: the model's name, version, alias, run and digest.
        source, source_version: what was read.
        job: the job's name, if it has one.
        run_id: the MLflow run that recorded it (with `track=True`).
    """

    status: Literal["scored", "nothing new"]
    target: str
    target_version: int | None
    rows: int
    failed: int
    seconds: float
    strategy: str
    reason: str
    model: Mapping[str, str | None]
    source: str
    source_version: int | None
    job: str | None = None
    run_id: str | None = None

    @classmethod
    def of(cls, job: Job, committed: Committed, strategy: str, reason: str, began: float) -> ScoreResult:
        """What a job committed; nothing where it had been done before, or another run of it was faster."""
        new = committed.version is not None
        return cls(
            status="scored" if new else "nothing new",
            target=job.target.text,
            target_version=committed.version,
            rows=committed.rows if new else 0,
            failed=committed.failed if new else 0,
            seconds=time.monotonic() - began,
            strategy=strategy if new else "none",
            reason=reason if new else "this job had done this work before",
            model=job.model.facts(),
            source=job.source.label,
            source_version=job.source.version,
            job=job.backlog.job,
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        name = self.model["model_name"]
        model = f"{name} version {self.model['model_version']}" if name else str(self.model["model_uri"])
        if self.status == "nothing new":
            return f"Nothing new in {self.source} for {self.target} (looked for {self.seconds:.1f} s)."
        rate = self.rows / self.seconds if self.seconds else 0.0
        failed = f", {self.failed:,} of them failed" if self.failed else ""
        return (
            f"{self.rows:,} rows scored with {model} into {self.target} version {self.target_version}{failed} "
            f"({self.seconds:.1f} s, {rate:,.0f} rows/s, strategy {self.strategy}: {self.reason})."
        )


def record_run(result: ScoreResult, job: Job) -> str:
    """Log a finished job as a run of the current experiment (below the active run, if there is one), and return its id.

    The source table's version is a tag as well, since MLflow's Delta source leaves version 0 out.
    """
    import mlflow
    from mlflow.data.spark_dataset import load_delta

    asked = {"mode": job.request.mode, "where": job.request.where, "strategy": result.strategy}
    params = {**job.model.facts(), "source": result.source, "target": result.target, **asked}
    tags = {"source_version": result.source_version, "target_version": result.target_version, "job": result.job, "status": result.status}
    metrics: dict[str, float] = {"rows": result.rows, "failed_rows": result.failed, "seconds": result.seconds}
    if result.seconds:
        metrics["rows_per_second"] = result.rows / result.seconds
    with mlflow.start_run(run_name=f"score {job.model.name or 'model'}", nested=mlflow.active_run() is not None) as run:
        mlflow.log_params({name: value for name, value in params.items() if value is not None})
        mlflow.log_metrics(metrics)
        mlflow.set_tags({f"spark_tracking.{name}": value for name, value in tags.items() if value is not None})
        if job.source.table is not None and job.source.version is not None:
            mlflow.log_input(load_delta(**_dataset(job.spark, job.source.table), version=str(job.source.version)), context="scoring")
    return str(run.info.run_id)


def _dataset(spark: SparkSession, table: TableRef) -> dict[str, str]:
    """As MLflow takes it, which asks Databricks for the id of any table whose catalog is not named as Spark's own."""
    from mlflow.utils.databricks_utils import is_in_databricks_runtime

    if table.is_path:
        return {"path": table.path}
    name, catalog = table.text, spark.catalog
    if is_in_databricks_runtime() or "`" in name or name.count(".") > 1 or catalog.currentCatalog() != "spark_catalog":
        return {"table_name": name}
    return {"table_name": f"spark_catalog.{name if '.' in name else f'{catalog.currentDatabase()}.{name}'}"}
