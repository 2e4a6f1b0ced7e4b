"""The house's walls: layers, what may import what, and what a plain import costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(code: str) -> str:
    """Run `code` in a new Python with warnings as they are, and return what it printed."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_layers_point_downward_and_heavy_libraries_stay_in_their_rooms() -> None:
    linted = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("module", ["spark_tracking", "spark_tracking.cli", "spark_tracking.cluster"])
def test_a_plain_import_brings_neither_spark_nor_delta_beyond_what_mlflow_itself_brings(module: str) -> None:
    heavy = {"pyspark", "delta", "deltalake", "datafusion", "sklearn"}
    code = f"import sys, mlflow; before = set(sys.modules); import {module}; print(sorted({heavy!r} & sys.modules.keys() - before))"
    assert python(code) == "[]"


def test_mlflow_loads_no_store_of_ours_before_it_is_used() -> None:
    assert python("import sys, mlflow; print('deltalake' in sys.modules)") == "False"


def test_what_a_client_and_a_server_need_imports_without_pyspark() -> None:
    modules = ", ".join(f"spark_tracking.{name}" for name in ("cli", "cluster", "lake", "readers", "store"))
    assert python(f"import sys; sys.modules['pyspark'] = None; import {modules}; print('imported')") == "imported"


@pytest.mark.parametrize("module", ["errors", "here", "lake", "readers", "spark", "sources", "store", "mirror", "scoring", "cluster.use"])
def test_any_room_can_be_entered_first(module: str) -> None:
    # MLflow imports our plug-ins while it is itself imported; what fails then is only a warning.
    code = f"import warnings; warnings.simplefilter('error', UserWarning); import spark_tracking.{module}; import mlflow; print('imported')"
    assert python(code) == "imported"


def test_importing_the_package_costs_less_than_300_ms_of_cpu_beyond_mlflow() -> None:
    code = "import mlflow, time; t = time.process_time(); import spark_tracking; print(time.process_time() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.3
