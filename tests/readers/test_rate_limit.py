"""One rate of requests for all processes of a machine."""

from __future__ import annotations

import multiprocessing
import threading
import time
import uuid
from pathlib import Path

import pytest

from spark_tracking.readers import rate_limit
from spark_tracking.readers.rate_limit import RateLimit


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A server nobody has asked anything, with the limit's file in a folder of the test's."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return f"http://{uuid.uuid4().hex}"


def ask(server: str, count: int, times: multiprocessing.SimpleQueue) -> None:  # type: ignore[type-arg]
    for _ in range(count):
        RateLimit(server).wait(25)
        times.put(time.monotonic())


def test_processes_share_the_rate(server: str) -> None:
    context = multiprocessing.get_context("fork")
    times = context.SimpleQueue()
    processes = [context.Process(target=ask, args=(server, 5, times)) for _ in range(3)]
    begin = time.monotonic()
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    asked = sorted(times.get() for _ in range(15))
    assert asked[-1] - begin >= 14 / 25


def test_a_pause_holds_for_everybody_also_for_who_waits_already(server: str) -> None:
    limit, other = RateLimit(server), RateLimit(server)
    limit.wait(2)
    waiting = threading.Thread(target=limit.wait, args=(2,))
    waiting.start()  # its turn is in half a second
    time.sleep(0.1)
    begin = time.monotonic()
    other.pause(1.0)
    waiting.join(10)
    assert time.monotonic() - begin >= 0.99
    other.pause(0.3)
    limit.wait(None)
    assert time.monotonic() - begin >= 1.29


def test_without_a_limit_nobody_waits(server: str) -> None:
    begin = time.monotonic()
    for _ in range(100):
        RateLimit(server).wait(None)
    assert time.monotonic() - begin < 1


def test_where_no_file_can_be_had_the_process_keeps_the_rate(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    begin = time.monotonic()
    for _ in range(5):
        RateLimit(server).wait(20)
    assert time.monotonic() - begin >= 4 / 20


def test_a_time_from_before_the_machine_was_started_is_forgotten(server: str, tmp_path: Path) -> None:
    RateLimit(server).pause(1)
    (file,) = tmp_path.glob("spark-tracking-rate-*")
    file.write_bytes(rate_limit._TIMES.pack(time.monotonic() + 1e6, 0.0))
    begin = time.monotonic()
    RateLimit(server).wait(10)
    assert time.monotonic() - begin < 1
    assert server.removeprefix("http://") not in file.name
