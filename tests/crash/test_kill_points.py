"""A process is killed at a chosen point of its work; the next one finds every acknowledged write, and works on."""

from __future__ import annotations

import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.crash.proof import prove
from tests.crash.worker import POINTS, main

WAYS: dict[str, list[tuple[str, int]]] = {point: [("before", 1), ("after", 1), ("before", 2), ("after", 2)] for point in POINTS}
WAYS["appending a record"] += [("torn", 1), ("torn", 4), ("after", 7)]
for point in ("compacting", "vacuuming", "rebuilding", "closing"):
    WAYS[point] = [("before", 1), ("within", 1), ("after", 1)]
for point in ("committing to a log", "committing to a derived table"):
    WAYS[point] += [("within", 1), ("within", 2)]


@pytest.mark.parametrize("point", POINTS)
def test_processes_killed_at_any_point_lose_nothing(point: str, processes: ForkServerContext, lake_uri: str, histories: Path) -> None:
    for seed, (how, nth) in enumerate(WAYS[point]):
        options = {"kill_at": point, "how": how, "nth": nth, "flush_seconds": 3600}
        victim = processes.Process(target=main, args=("work", lake_uri, seed, str(histories / f"write{seed}.jsonl"), options))
        victim.start()
        victim.join(60)
        assert victim.exitcode in (-signal.SIGKILL, -signal.SIGALRM), f"killed {how} {point} ({nth}): {victim.exitcode}"
    survivor = processes.Process(target=main, args=("work", lake_uri, 99, str(histories / "write99.jsonl"), {}))
    survivor.start()
    survivor.join(60)
    assert survivor.exitcode == 0
    recorded = prove(lake_uri, histories)
    assert len(recorded.acknowledged) >= 15
