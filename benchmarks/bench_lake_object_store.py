"""A lake on an object store: calls per second of one and of 16 writers, and what a call costs in requests.

The store is moto's S3 on loopback with 15 ms added to each request, about what S3 takes; it answers one request at a time, so
with 16 writers it is soon the limit. There is no peer: MLflow's SQL stores do not run on object stores.

    python benchmarks/bench_lake_object_store.py [DELAY_MS]
"""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.lake.object_store.emulators import Emulator, start_s3

CALLS = 20


def main(delay_ms: float = 15.0) -> None:
    emulator = start_s3(delay_ms)
    try:
        os.environ.update(emulator.environment)
        print(f"{'work':<58}{'calls/s':>10}{'p50 ms':>10}{'requests a call':>18}")
        for writers in (1, 16):
            measure(emulator, writers)
    finally:
        emulator.stop()


def measure(emulator: Emulator, writers: int) -> None:
    from spark_tracking.lake import Lake, MetricBlock

    lake = Lake.open(f"delta+{emulator.base}/{uuid.uuid4().hex}", create=True)
    taken: list[float] = []

    def work(number: int) -> None:
        for step in range(CALLS):
            begin = time.perf_counter()
            lake.write((), [MetricBlock(f"r{number}", "0", ["loss"], [0.5], [step], [step])])
            taken.append(time.perf_counter() - begin)

    work(99)
    taken.clear()
    emulator.requests()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(writers)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, calls = time.perf_counter() - begin, writers * CALLS
    per_call = len(emulator.requests()) / calls
    what = f"log one point, {writers} threads of one process (flushes included)"
    print(f"{what:<58}{calls / seconds:>10.1f}{sorted(taken)[calls // 2] * 1000:>10.1f}{per_call:>18.1f}", flush=True)
    lake.close()
    Lake._open.pop(lake.uri.root)  # the store is gone when this process ends


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
