"""The cluster notebook, run cell after cell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "cluster.py"


@pytest.mark.slow
def test_the_notebook_looks_logs_and_searches_over_two_hundred_groups(
    spark: SparkSession, lake_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", lake_uri)
    namespace: dict[str, Any] = {"spark": spark, "__name__": "__main__"}
    for cell in NOTEBOOK.read_text().removeprefix("# Databricks notebook source\n").split("# COMMAND ----------"):
        if not cell.strip().startswith("# MAGIC"):
            exec(compile(cell, str(NOTEBOOK), "exec"), namespace)
    assert namespace["report"].findings
    children = mlflow.search_runs(
        [namespace["parent"].info.experiment_id], f"tags.mlflow.parentRunId = '{namespace['parent'].info.run_id}'", output_format="list"
    )
    assert len(children) == 200
    assert {run.info.run_id for run in children} == set(namespace["tried"]["run_id"])
    assert {run.data.metrics["accuracy"] for run in children} == set(namespace["tried"]["accuracy"])
