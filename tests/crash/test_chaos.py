"""Many processes on one lake, killed at random moments and started again: writers, some with a clock an hour behind, takers of
names, flushers and refreshers with and without the lake's lock, compaction, vacuum, rebuilds, and readers that look on.

A failure prints its seed; `SEED=<n> pytest tests/crash/test_chaos.py` plays the same kills again (not the same scheduling).
"""

from __future__ import annotations

import os
import random
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from tests.crash.proof import prove
from tests.crash.worker import main

FEW = ["write", "write behind", "name", "flush", "race", "maintain", "read", "raw"]
MANY = [*["write"] * 4, *["write behind"] * 3, *["name"] * 4, *["flush", "race", "maintain", "read"] * 2, "raw"]


class Chaos:
    """Keeps one process of each role running, however often they are killed."""

    def __init__(self, processes: ForkServerContext, uri: str, histories: Path, roles: list[str], seed: int) -> None:
        self._processes, self._uri, self._histories = processes, uri, histories
        self.rng = random.Random(seed)
        self._running: dict[int, tuple[str, Any]] = {}
        self.started = self.killed = 0
        self.failed: list[str] = []
        for place, role in enumerate(roles):
            self._start(place, role)

    def _start(self, place: int, role: str) -> None:
        kind, *behind = role.split()
        options = {"clock_behind_s": 3600 if behind else 0, "flush_seconds": self.rng.choice([0.05, 0.3, 5])}
        history = str(self._histories / f"{kind}-{place}-{self.started}.jsonl")
        process = self.process(kind, self._uri, self.rng.getrandbits(32), history, options)
        process.start()
        self._running[place] = role, process
        self.started += 1

    def process(self, *arguments: Any) -> Any:
        return self._processes.Process(target=main, args=arguments)

    def keep_killing(self, seconds: float, pause: float) -> None:
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                time.sleep(self.rng.expovariate(1 / pause))
                self.kill_one()
        finally:
            self.stop()

    def kill_one(self) -> None:
        place = self.rng.choice(list(self._running))
        role, process = self._running[place]
        if process.exitcode is not None:
            self.failed.append(f"'{role}' ended by itself with {process.exitcode}")
        process.kill()
        process.join()
        self.killed += 1
        self._start(place, role)

    def stop(self) -> None:
        for _, process in self._running.values():
            process.kill()
            process.join()


def run(processes: ForkServerContext, uri: str, histories: Path, roles: list[str], seconds: float, pause: float) -> None:
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().getrandbits(31)
    print(f"SEED={seed}")
    first = processes.Process(target=main, args=("work", uri, 0, str(histories / "write.jsonl"), {}))
    first.start()
    first.join()
    chaos = Chaos(processes, uri, histories, roles, seed)
    chaos.keep_killing(seconds, pause)
    recorded = prove(uri, histories)
    assert not chaos.failed
    versions = [call for call in recorded.acknowledged if call.tried.get("names") == "version"]
    print(
        f"{chaos.killed} killed, {len(recorded.acknowledged)} calls acknowledged, {len(versions)} versions, "
        f"{len(recorded.calls) - len(recorded.acknowledged)} calls cut off, {recorded.looks} looks by readers"
    )
    assert chaos.killed >= 5 and len(recorded.acknowledged) >= 100 and versions and recorded.looks >= 10


def test_a_lake_survives_kills(processes: ForkServerContext, lake_uri: str, histories: Path) -> None:
    run(processes, lake_uri, histories, FEW, seconds=10, pause=0.25)


@pytest.mark.slow
def test_a_lake_survives_many_kills_of_many_processes(processes: ForkServerContext, lake_uri: str, histories: Path) -> None:
    run(processes, lake_uri, histories, MANY, seconds=150, pause=0.15)
