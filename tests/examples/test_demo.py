"""The demo as a newcomer runs it: the command, twice, reading what it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from deltalake import DeltaTable


def run(folder: Path) -> str:
    """What `spark-tracking demo` prints on stdout; anything on stderr is noise, or an error."""
    command = Path(sys.executable).with_name("spark-tracking")
    told = subprocess.run([command, "demo"], cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    assert told.returncode == 0, told.stderr
    assert told.stderr == ""
    return told.stdout


@pytest.mark.slow
def test_the_demo_tells_its_six_steps_without_noise_and_a_second_run_adds_to_the_lake(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert re.findall(r"^(\d)\. ", first, flags=re.MULTILINE) == list("123456")
    assert "models:/wine/1 is now models:/wine@champion" in first
    runs = DeltaTable(tmp_path / "demo-lake" / "runs_latest").to_pyarrow_table().num_rows

    second = run(tmp_path)
    assert "models:/wine/2 is now models:/wine@champion" in second
    assert DeltaTable(tmp_path / "demo-lake" / "runs_latest").to_pyarrow_table().num_rows == 2 * runs
