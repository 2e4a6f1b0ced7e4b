"""The notebook that reads, ranks, compares and plots runs does so, on a lake."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "reading.py"


def test_the_reading_notebook_ranks_compares_and_plots(spark: SparkSession, lake_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    mlflow.set_tracking_uri(lake_uri)
    client = MlflowClient()
    for i in range(12):
        run = client.create_run("0", run_name=f"run {i}")
        client.log_batch(run.info.run_id, [Metric("acc", i + step / 10, step, step) for step in range(3)], [Param("depth", str(i))])
    namespace: dict[str, Any] = {"spark": spark, "__name__": "__main__"}
    cells = NOTEBOOK.read_text().removeprefix("# Databricks notebook source\n").split("# COMMAND ----------")
    for cell in cells:
        if not cell.strip().startswith("# MAGIC"):
            exec(compile(cell, str(NOTEBOOK), "exec"), namespace)
    assert namespace["metric"] == "acc"
    assert namespace["best"]["run_name"].tolist() == [f"run {i}" for i in range(11, 1, -1)]
    assert namespace["steps"].shape == (3, 10)
    assert len(namespace["curves"].lines) == len(namespace["coordinates"].lines) == 10
    assert "run 11" in capsys.readouterr().out
