"""The shell half of a cluster start, run by its own tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "init_scripts" / "spark-tracking-init.sh"


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian's package has the same name)")
    return path


def test_the_script_behaves_as_its_bats_tests_say() -> None:
    done = subprocess.run(
        [tool("bats"), str(Path(__file__).parent / "bats")],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_script_is_clean_to_shellcheck() -> None:
    done = subprocess.run([tool("shellcheck"), str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_wheel_is_installed_without_any_network_and_a_second_start_installs_nothing(tmp_path: Path) -> None:
    wheels = tmp_path / "volume"
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), str(ROOT)], check=True)
    (wheel,) = wheels.glob("*.whl")
    python = tmp_path / "node" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "node")], check=True)
    (site,) = (tmp_path / "node").glob("lib/python*/site-packages")
    # The runtime's own packages: everything of this environment but ours.
    (site / "runtime.pth").write_text(f"{runtime_without_us(tmp_path)}\n")
    environ = {
        **os.environ,
        "SPARK_TRACKING_INIT_ROOT": str(tmp_path / "root"),
        "SPARK_TRACKING_PYTHON": str(python),
        "SPARK_TRACKING_PACKAGE": str(wheel),
        "SPARK_TRACKING_URI": "http://mlflow.example.com",
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",  # nothing listens there
    }
    first = subprocess.run([SCRIPT], env=environ, capture_output=True, text=True, check=False)
    assert first.returncode == 0
    assert "installing" in first.stderr
    assert "MLFLOW_TRACKING_URI=http://mlflow.example.com" in first.stderr
    second = subprocess.run([SCRIPT], env=environ, capture_output=True, text=True, check=False)
    assert "installing" not in second.stderr


def runtime_without_us(folder: Path) -> Path:
    """A site folder with links to all that is installed here, without spark-tracking."""
    import mlflow

    there = folder / "runtime"
    there.mkdir()
    for entry in Path(mlflow.__file__).parents[1].iterdir():
        if not entry.name.startswith(("spark_tracking", "__editable__", "pip")) and entry.suffix != ".pth":
            (there / entry.name).symlink_to(entry)
    return there
