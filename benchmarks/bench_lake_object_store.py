"""A lake on an object store: calls per second of one and of 16 writers, and what a call costs in requests.

The store is moto's S3 on loopback with 15 ms added to each request, about what S3 takes; it answers one request at a time, so
with 16 writers it is soon the limit. There is no peer: MLflow's SQL stores do not run on object stores.

    python benchmarks/bench_lake_object_store.py [--delay-ms 15]
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.lake.object_store.emulators import Emulator, start_s3

CALLS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay-ms", type=float, default=15.0, help="added to each request")
    emulator = start_s3(parser.parse_args().delay_ms)
    try:
        os.environ.update(emulator.environment)
        print(f"{'work':<66}{'calls/s':>10}{'p50 ms':>10}{'p99 ms':>10}{'requests a call':>18}")
        for processes, threads in ((1, 1), (1, 16), (4, 1), (16, 1)):
            measure(emulator, processes, threads)
    finally:
        emulator.stop()


def measure(emulator: Emulator, processes: int, threads: int) -> None:
    """One row: every writer logs CALLS points, one a call, each with its own run."""
    context = mp.get_context("spawn")
    uri = f"delta+{emulator.base}/{uuid.uuid4().hex}"
    ready, go, out = context.Semaphore(0), context.Event(), context.Queue()
    writers = [context.Process(target=_process, args=(uri, number, threads, ready, go, out)) for number in range(processes)]
    for writer in writers:
        writer.start()
    for _ in writers:
        ready.acquire()
    emulator.requests()
    begin = time.perf_counter()
    go.set()
    taken = sorted(seconds for _ in writers for seconds in out.get())
    seconds = time.perf_counter() - begin
    per_call = len(emulator.requests()) / len(taken)
    for writer in writers:
        writer.join()
    what = f"log one point, {processes} processes of {threads} threads (polls, flushes included)"
    p50, p99 = taken[len(taken) // 2] * 1000, taken[len(taken) * 99 // 100] * 1000
    print(f"{what:<66}{len(taken) / seconds:>10.1f}{p50:>10.1f}{p99:>10.1f}{per_call:>18.1f}", flush=True)


def _process(uri: str, number: int, threads: int, ready: Any, go: Any, out: Any) -> None:
    from spark_tracking.lake import Lake, MetricBlock

    lake, taken = Lake.open(uri, create=True), []

    def work(thread: int) -> None:
        for step in range(CALLS):
            begin = time.perf_counter()
            lake.write((), [MetricBlock(f"r{number}-{thread}", "0", ["loss"], [0.5], [step], [step])])
            taken.append(time.perf_counter() - begin)

    lake.write((), [MetricBlock(f"r{number}-first", "0", ["loss"], [0.5], [0], [0])])
    ready.release()
    go.wait()
    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    out.put(taken)


if __name__ == "__main__":
    main()
