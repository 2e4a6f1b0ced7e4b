"""The sources on workers in processes of their own, and behind Spark Connect."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cluster", "connect", "bare", "poor"])
def test_the_sources_work_on_every_kind_of_spark(mode: str) -> None:
    program = Path(__file__).with_name("modes.py")
    done = subprocess.run([sys.executable, str(program), mode], check=False, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"ok: {mode}" in done.stdout
