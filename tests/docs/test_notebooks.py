"""The notebooks run, cell after cell, with a Spark as a platform hands them one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


def cells(notebook: Path) -> list[str]:
    """The code cells; those of magic lines (`%md`, `%pip`) are the platform's."""
    found = notebook.read_text().removeprefix("# Databricks notebook source\n").split("# COMMAND ----------")
    return [cell for cell in found if not cell.strip().startswith("# MAGIC")]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_in_databricks_source_format_and_holds_no_logic(notebook: Path) -> None:
    assert notebook.read_text().startswith("# Databricks notebook source\n")
    for cell in cells(notebook):
        compile(cell, str(notebook), "exec")
        assert not any(line.startswith(("def ", "class ", "for ", "if ")) for line in cell.splitlines()), cell


def test_the_demo_notebook_trains_registers_and_scores(spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"spark": spark, "__name__": "__main__"}
    for cell in cells(ROOT / "notebooks" / "demo.py"):
        exec(compile(cell, "notebooks/demo.py", "exec"), namespace)
    assert namespace["version"] == 1
    scored = spark.read.format("delta").load(str(tmp_path / "demo-lake" / "tables" / "wine_scored"))
    assert scored.count() == 178
    assert "models:/wine@champion" in capsys.readouterr().out
