"""What the benchmarks share: timing, a table of peer against us, and scratch folders.

A benchmark runs the peer and us on the same work in one run. Figures are medians; ratios are what to quote, since machines are
noisy. `limit` is what the machine could do at most, where that is known.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tests.servers`

SOCKETS = {"spark.python.unix.domain.socket.enabled": str("TCP" not in os.environ).lower()}
"""Both sides' setting: over TCP, Spark's default, JVM and Python wait 40 ms for each other in each task. `TCP=1 python …` measures that."""


@dataclass
class Row:
    """One line of the result: seconds (or a rate) of the peer and of us, and what was to be reached."""

    work: str
    peer: float
    ours: float
    unit: str
    reach: str
    higher_is_better: bool = False
    limit: float | None = None

    @property
    def ratio(self) -> float:
        better, worse = (self.ours, self.peer) if self.higher_is_better else (self.peer, self.ours)
        return better / worse if worse else float("inf")


def show(title: str, rows: list[Row]) -> None:
    """Print the table."""
    print(f"\n{title}   ({os.cpu_count()} cores, Python {sys.version.split()[0]})\n")
    print(f"{'work':<58}{'peer':>12}{'ours':>12} {'unit':<9}{'ratio':>8}{'limit':>12}  reach")
    for row in rows:
        limit = "" if row.limit is None else f"{row.limit:,.4g}"
        print(
            f"{row.work:<58}{row.peer:>12,.4g}{row.ours:>12,.4g} {row.unit:<9}{row.ratio:>7.1f}x{limit:>12}  {row.reach}",
            flush=True,
        )


def times(action: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of `count` calls, sorted."""
    taken = []
    for _ in range(count):
        begin = time.perf_counter()
        action()
        taken.append(time.perf_counter() - begin)
    return sorted(taken)


def median(action: Callable[[], object], count: int) -> float:
    """Median seconds of a call."""
    return statistics.median(times(action, count))


@contextmanager
def apart() -> Iterator[Callable[..., Any]]:
    """A process of the peer's own, with a Spark of its own: what we do to Spark's workers must not help it.

    Yields:
        Call it with a function of a module and its arguments; the function's result comes back.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield lambda function, *arguments: pool.apply(function, arguments)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that goes when the benchmark ends."""
    folder = Path(tempfile.mkdtemp(prefix="spark-tracking-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
