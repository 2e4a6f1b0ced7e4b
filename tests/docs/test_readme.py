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
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
NEEDS = re.findall(r"^(?:Needs: ([^\n]*)\.\n\n)?```\w+\n.*?^```$", README, flags=re.MULTILINE | re.DOTALL)
NOT_HERE = ("make ", "pip install ", "spark-tracking ui ")  # what CI does before it gets here; tests/ui has the last


def test_readme_has_an_example_for_each_wing() -> None:
    code = "".join(text for _, text in BLOCKS)
    for call in ("mlflow.set_tracking_uri(", 'spark.read.format("mlflow-experiment")', "st.score_table(", "init_scripts/"):
        assert call in code


def test_each_example_says_what_it_needs() -> None:
    assert len(NEEDS) == len(BLOCKS)
    assert all(NEEDS), [text for needed, (_, text) in zip(NEEDS, BLOCKS) if not needed]


@pytest.mark.slow
def test_the_examples_that_need_the_core_alone_run_on_a_plain_install(tmp_path: Path) -> None:
    files = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).exists():
            (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "tree" / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    bin = tmp_path / "venv" / "bin"
    subprocess.run([bin / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", tmp_path / "tree"], check=True)
    os.environ["PATH"] = f"{bin}{os.pathsep}{os.environ['PATH']}"
    (tmp_path / "init_scripts").symlink_to(ROOT / "init_scripts")
    code = ""
    for needed, (language, text) in zip(NEEDS, BLOCKS):
        if needed != "the core" or text.startswith(NOT_HERE):
            continue
        code += text if language == "python" else ""
        command = [bin / "python", "-c", code] if language == "python" else ["sh", "-euc", text]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        assert told.returncode == 0, f"{text}\n{told.stderr}"
    for words, needed in PLAIN.items():
        told = subprocess.run([bin / "spark-tracking", *words.split()], capture_output=True, text=True, check=False)
        assert (told.returncode, "Traceback" in told.stderr, needed in told.stderr) == (2, False, True), told.stderr
    code = "import spark_tracking as st\nfor name in st.__all__:\n    try: getattr(st, name)\n    except ImportError as error: print(error)"
    told = subprocess.run([bin / "python", "-c", code], capture_output=True, text=True, check=True)
    assert [line.split(": ")[1] for line in told.stdout.splitlines()] == ["pip install 'spark-tracking[spark]'"] * 3


PLAIN = {
    "demo": "pip install 'spark-tracking[spark]'",
    "ui lake": "pip install 'spark-tracking[server]'",
    "score models:/wine@champion a b": "pip install 'spark-tracking[spark]'",
    "lake register lake --execute": "pip install 'spark-tracking[spark]'",
    "sync sqlite:///mlflow.db mirror": "pip install 'spark-tracking[database]'",
}
"""Commands that need more, and the line by which they say so."""


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
        elif not text.startswith(NOT_HERE):
            assert language == "shell"
            subprocess.run(["sh", "-euc", text], check=True)
    assert namespace["runs"].count() >= 1
    assert spark.read.format("delta").load(f"{tmp_path}/tables/scored").count() == 178
