"""What an installed wheel is: complete, free of tests, and no danger to the pyspark beside it."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the files that git knows or would add, so that nothing is left behind in the tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", out, source], check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_package_and_the_names_by_which_spark_finds_the_sources(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    expected = {"pyspark_mlflow.py", "pyspark_mlflow_experiment.py", "spark_tracking/py.typed", "spark_tracking/spark/log4j2.properties"}
    assert expected <= set(names)
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "spark_tracking").rglob("*.py")}
    assert package <= set(names)


def test_the_wheel_holds_no_tests_and_nothing_else_of_the_tree(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"spark_tracking", "pyspark_mlflow.py", "pyspark_mlflow_experiment.py", "spark_tracking-0.1.0.dist-info"}


def test_a_plain_install_requires_neither_spark_nor_the_full_mlflow() -> None:
    core = {re.match(r"[\w-]+", line)[0].lower() for line in requires("spark-tracking") or [] if "extra ==" not in line}  # type: ignore[index]
    assert core.isdisjoint({"pyspark", "delta-spark", "pyspark-client", "mlflow", "pandas"})
    assert {"mlflow-skinny", "deltalake", "datafusion"} <= core


@pytest.mark.slow
def test_installed_beside_another_pyspark_the_wheel_leaves_it_alone(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [tmp_path / "venv" / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "py4j==0.10.9.7"], check=True)
    # A pyspark as a runtime has it: known to pip, another version than ours.
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    (site / "pyspark-3.5.2.dist-info").mkdir()
    (site / "pyspark-3.5.2.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: pyspark\nVersion: 3.5.2\n")
    (site / "pyspark-3.5.2.dist-info" / "RECORD").write_text("")
    told = subprocess.run([*pip, "install", "--dry-run", wheel], capture_output=True, text=True, check=True).stdout
    assert "spark-tracking-0.1.0" in told
    assert "pyspark-" not in told.replace("spark-tracking", "")
