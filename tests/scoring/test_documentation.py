"""The examples of docs/scoring.md run as they stand, and so does the notebook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlflow
import pytest
from pyspark.sql import SparkSession
from scoring_models import NUMBERS

ROOT = Path(__file__).parents[2]


def test_the_examples_of_the_reference_page(spark: SparkSession, registry: mlflow.MlflowClient, tmp_path: Path) -> None:
    spark.createDataFrame(NUMBERS.assign(id=range(len(NUMBERS)))).write.format("delta").save(str(tmp_path / "wine"))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "scoring.md").read_text(), flags=re.S)
    # Spark's working directory is that of its start, so the page's relative paths are put below this test's folder.
    page = re.sub(r"\"(wine|scored|nightly)(/?)\"", rf'"{tmp_path}/\1"', "\n".join(blocks))
    page = page.replace(f'createOrReplaceTempView("{tmp_path}/wine")', 'createOrReplaceTempView("wine")')
    space: dict[str, Any] = {"spark": spark}
    exec(compile(page, "docs/scoring.md", "exec"), space)
    assert space["result"].rows == space["again"].rows == 200
    assert [commit.facts["model_version"] for commit in space["history"](str(tmp_path / "nightly"))] == ["1"]


@pytest.mark.slow
def test_the_notebook_trains_by_grid_search_registers_scores_and_looks(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    cells = (ROOT / "notebooks" / "scoring.py").read_text().removeprefix("# Databricks notebook source\n").split("# COMMAND ----------")
    space: dict[str, Any] = {"spark": spark}
    try:
        for cell in cells:
            if not cell.strip().startswith("# MAGIC"):
                exec(compile(cell, "notebooks/scoring.py", "exec"), space)
        assert space["result"].rows == 178
        kinds = spark.table("wine_scored").join(spark.table("wine_features"), "id").select("prediction").distinct().count()
        assert kinds == 3
        assert "wine-search version 1" in capsys.readouterr().out
    finally:
        spark.sql("DROP TABLE IF EXISTS wine_scored")
        spark.sql("DROP TABLE IF EXISTS wine_features")
