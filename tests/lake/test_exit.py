"""A process that has read a lake ends as it should: with its own exit code, never by an abort of a native thread."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.servers import mlflow_server

LEAVING = str(Path(__file__).with_name("leaving.py"))
PROPER = {"fail": 1, "interrupted": -signal.SIGINT}
WORST = ("search_runs", "interrupted", "read_partly")
ALL = (
    "search_runs",
    "get_run",
    "get_metric_history",
    "runs_list",
    "read",
    "read_points",
    "read_partly",
    "fail",
    "interrupted",
    "in_a_child",
)


def leave(uri: str, what: str) -> tuple[int, str]:
    """The exit code of a process that does one thing, and what it said."""
    done = subprocess.run([sys.executable, LEAVING, uri, what], check=False, capture_output=True, text=True, timeout=180)
    return done.returncode, done.stderr


def forked(uri: str, what: str, times: int) -> Counter[int]:
    """The exit codes of processes that are forked from one which has imported what they need: each costs a tenth."""
    done = subprocess.run([sys.executable, LEAVING, uri, what, str(times)], check=True, capture_output=True, text=True)
    ended = Counter(json.loads(done.stdout.splitlines()[-1]))
    if set(ended) != {PROPER.get(what, 0)}:
        print(done.stderr[-3000:])
    return ended


def codes(uri: str, what: str, times: int) -> Counter[int]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ended = list(pool.map(lambda _: leave(uri, what), range(times)))
    wrong = [said for code, said in ended if code != PROPER.get(what, 0)]
    if wrong:
        print(wrong[0][-3000:])
    return Counter(code for code, _ in ended)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"delta://{tmp_path_factory.mktemp('exit') / 'lake'}"
    assert leave(uri, "fill")[0] == -signal.SIGKILL
    return uri


@pytest.mark.parametrize("what", WORST)
def test_processes_that_read_a_lake_end_well(filled: str, what: str) -> None:
    assert codes(filled, what, 8) == {PROPER.get(what, 0): 8}


@pytest.mark.slow
@pytest.mark.parametrize("what", ALL)
def test_a_hundred_processes_that_read_a_lake_end_well(filled: str, what: str) -> None:
    assert codes(filled, what, 10) + forked(filled, what, 90) == {PROPER.get(what, 0): 100}


@pytest.mark.slow
def test_the_workers_of_a_server_end_well(filled: str, tmp_path: Path) -> None:
    for _ in range(5):
        with mlflow_server(filled, tmp_path, workers=2) as server:
            body = b'{"experiment_ids": ["1"]}'
            asked = urllib.request.Request(f"{server.url}/api/2.0/mlflow/runs/search", body, {"Content-Type": "application/json"})
            for _ in range(10):
                urllib.request.urlopen(asked).close()
    said = "".join(log.read_text() for log in tmp_path.glob("server-*.log"))
    assert "Finished server process" in said
    assert "terminate called" not in said and "Fatal Python error" not in said and "died" not in said
