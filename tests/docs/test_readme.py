"""README's examples run, top to bottom, in one empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
INSTALLS = ("make ", "pip install ")  # what CI does before it gets here


def test_readme_has_an_example_for_each_wing() -> None:
    code = "".join(text for _, text in BLOCKS)
    for call in ("mlflow.set_tracking_uri(", 'spark.read.format("mlflow-experiment")', "st.score_table(", "init_scripts/"):
        assert call in code


def test_the_make_targets_that_readme_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", "".join(text for language, text in BLOCKS if language == "shell")))
    assert named and named <= targets


def test_files_that_the_documents_point_at_exist() -> None:
    for document in ROOT.glob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (ROOT / link).exists(), f"{document.name} points at {link}"


def test_the_examples_run_in_order(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "init_scripts").symlink_to(ROOT / "init_scripts")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    namespace: dict[str, Any] = {"spark": spark, "__name__": "__main__"}
    # Spark resolves relative paths against the folder in which its JVM started, which is not this test's.
    blocks = [(language, text.replace('"tables/', f'"{tmp_path}/tables/')) for language, text in BLOCKS]
    for language, text in blocks:
        if language == "python":
            exec(compile(text, "README.md", "exec"), namespace)
        elif not text.startswith(INSTALLS):
            assert language == "shell"
            subprocess.run(["sh", "-euc", text], check=True)
    assert namespace["runs"].count() >= 1
    assert spark.read.format("delta").load(f"{tmp_path}/tables/scored").count() == 178
