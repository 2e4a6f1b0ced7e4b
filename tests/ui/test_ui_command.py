"""`spark-tracking ui`: one command that serves a lake's runs and leaves no process behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mlflow
import pytest

COMMAND = [str(Path(sys.executable).parent / "spark-tracking"), "ui"]


@pytest.mark.slow
def test_it_takes_the_next_port_serves_the_lake_and_ends_with_all_its_processes(tmp_path: Path) -> None:
    mlflow.set_tracking_uri(f"delta://{tmp_path}/lake")
    mlflow.create_experiment("wine")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code = f"from spark_tracking.cli.ui import ui; ui.params[2].default = {port}; ui.main()"
        process = subprocess.Popen([sys.executable, "-c", code, "lake"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        link = re.search(r"http://\S+", process.stdout.readline())
    assert link is not None and link[0].endswith("/#/experiments?workflowType=machine_learning")
    url = link[0].partition("/#")[0]
    assert int(url.rpartition(":")[2]) != port
    body = b'{"max_results": 10}'
    asked = urllib.request.Request(f"{url}/api/2.0/mlflow/experiments/search", body, {"Content-Type": "application/json"})
    assert b'"wine"' in urllib.request.urlopen(asked).read()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert not _living(url.rpartition(":")[2])
    assert sorted(os.listdir(tmp_path)) == ["lake"]


def _living(port: str) -> list[str]:
    """Command lines that name the port, given a moment to end."""
    for _ in range(20):
        told = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        found = [line for line in told.splitlines() if f"--port {port}" in line]
        if not found:
            break
        time.sleep(0.25)
    return found


def test_a_port_that_was_asked_for_and_is_taken_is_named_and_a_lake_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    mlflow.set_tracking_uri(f"delta://{tmp_path}/lake")
    mlflow.create_experiment("wine")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = subprocess.run([*COMMAND, "lake", "--port", port], capture_output=True, text=True, check=False)
    assert (told.returncode, f"Port {port} of 127.0.0.1 cannot be had" in told.stderr) == (2, True)
    told = subprocess.run([*COMMAND, "nolake"], capture_output=True, text=True, check=False)
    assert (told.returncode, "There is no lake at" in told.stderr) == (2, True)
    assert not (tmp_path / "nolake").exists()
