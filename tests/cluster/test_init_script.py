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


@pytest.mark.parametrize("tags", ["!slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_the_script_behaves_as_its_bats_tests_say(tags: str) -> None:
    done = subprocess.run(
        [tool("bats"), "--filter-tags", tags, str(Path(__file__).parent / "bats")],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok 1" in done.stdout


def test_the_script_is_clean_to_shellcheck() -> None:
    done = subprocess.run([Path(sys.executable).with_name("shellcheck"), SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["", "[s3]"])
def test_a_wheel_is_installed_without_any_network_and_a_second_start_installs_nothing(tmp_path: Path, extra: str) -> None:
    environ = {
        **os.environ,
        "SPARK_TRACKING_INIT_ROOT": str(tmp_path / "root"),
        "SPARK_TRACKING_PYTHON": node_with_runtime(tmp_path),
        "SPARK_TRACKING_PACKAGE": f"{wheel_of_this_checkout(tmp_path / 'volume')}{extra}",
        "SPARK_TRACKING_URI": "http://mlflow.example.com",
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",  # nothing listens there
    }
    first = subprocess.run([SCRIPT], env=environ, capture_output=True, text=True, check=False)
    assert first.returncode == 0
    assert "installing" in first.stderr
    assert "MLFLOW_TRACKING_URI=http://mlflow.example.com" in first.stderr
    second = subprocess.run([SCRIPT], env=environ, capture_output=True, text=True, check=False)
    assert "installing" not in second.stderr


def wheel_of_this_checkout(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def node_with_runtime(folder: Path, without: tuple[str, ...] = ()) -> str:
    """A new Python that finds all that is installed here, as a runtime's packages, but not spark-tracking and not `without`."""
    import mlflow

    runtime = folder / "runtime"
    runtime.mkdir()
    for entry in Path(mlflow.__file__).parents[1].iterdir():
        if not entry.name.startswith(("spark_tracking", "__editable__", "pip", *without)) and entry.suffix != ".pth":
            (runtime / entry.name).symlink_to(entry)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "node")], check=True)
    (site,) = (folder / "node").glob("lib/python*/site-packages")
    (site / "runtime.pth").write_text(f"{runtime}\n")
    return str(folder / "node" / "bin" / "python")
