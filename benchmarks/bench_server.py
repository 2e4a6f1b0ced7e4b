"""`mlflow server` on a lake against `mlflow server` on PostgreSQL: the same clients and calls, over REST, in one run.

    python benchmarks/bench_server.py                                    the rows, and the servers' memory over two minutes of mixed load
    python benchmarks/bench_server.py --only memory --minutes 60         memory alone, over an hour for each server
    python benchmarks/bench_server.py --only memory --minutes 60 --lake  the lake's server alone

PostgreSQL is Debian's, on local disk with its default settings (each commit synced); both servers have two workers. The limit
is the same call to the same server where the store has nothing to do (`/health`).
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing as mp
import os
import random
import statistics
import sys
import time
import urllib.request
import warnings
from pathlib import Path
from typing import Any

from _harness import Row, median, scratch, show

warnings.filterwarnings("ignore")
logging.disable(logging.INFO)
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # its threads change the environment beneath clients that read it

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, RunTag  # noqa: E402

from tests.servers import mlflow_server, postgresql, postgresql_programs  # noqa: E402

CLIENTS = 8
MOMENTS = 12

Measured = tuple[dict[str, float], tuple[float, float], float]


def points(count: int, start: int = 0) -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(f"m{i % 10}", random.random(), now, start + i // 10) for i in range(count)]


def short_run(client: MlflowClient) -> str:
    """What a small training job asks of a server: 4 calls."""
    run = client.create_run("0").info.run_id
    client.log_batch(run, points(20), [Param("p3", "0.01")], [RunTag("t", "x")])
    client.set_terminated(run)
    return str(run)


def measure(client: MlflowClient) -> dict[str, float]:
    """Median seconds of each kind of call by one client."""
    run = client.create_run("0").info.run_id
    steps = iter(range(100_000))
    taken = {
        "log_metric, one by one": median(lambda: client.log_metric(run, "loss", 0.5, step=next(steps)), 200),
        "log_batch of 1,000 metrics": median(lambda: client.log_batch(run, points(1000, next(steps) * 100)), 15),
        "create, log_batch of 20, end": median(lambda: short_run(client), 30),
    }
    for _ in range(200):
        short_run(client)
    ask = {"filter_string": "metrics.m1 > 0.5 AND params.p3 = '0.01'", "order_by": ["metrics.m2 DESC"], "max_results": 100}
    taken["search_runs, a page of 100 of 230 runs"] = median(lambda: client.search_runs(["0"], **ask), 10)
    taken["get_run"] = median(lambda: client.get_run(run), 50)
    return taken


def together(uri: str) -> tuple[float, float]:
    """(calls per second of all, 99th percentile in seconds) of log_metric by CLIENTS processes."""
    context = mp.get_context("spawn")
    go, out = context.Event(), context.Queue()
    ready = context.Semaphore(0)
    writers = [context.Process(target=_writer, args=(uri, ready, go, out)) for _ in range(CLIENTS)]
    for writer in writers:
        writer.start()
    for _ in writers:
        ready.acquire()
    begin = time.perf_counter()
    go.set()
    taken = sorted(t for _ in writers for t in out.get())
    seconds = time.perf_counter() - begin
    for writer in writers:
        writer.join()
    return len(taken) / seconds, taken[len(taken) * 99 // 100]


def _writer(uri: str, ready: Any, go: Any, out: Any) -> None:
    client = MlflowClient(uri, uri)
    run = client.create_run("0").info.run_id
    ready.release()
    go.wait()
    taken = []
    for step in range(60):
        begin = time.perf_counter()
        client.log_metric(run, "loss", 0.5, step=step)
        taken.append(time.perf_counter() - begin)
    out.put(taken)


def mixed_load(name: str, uri: str, pid: int, minutes: float) -> None:
    """Print the memory of all processes of a server at MOMENTS moments of a mixed load by four clients, as they come."""
    context = mp.get_context("spawn")
    stop, rounds = context.Event(), context.Value("q", 0)
    clients = [context.Process(target=_mixed, args=(uri, stop, rounds)) for _ in range(4)]
    print(f"\n{name}: memory of all processes of the server, in MB, over {minutes:g} min of mixed load by 4 clients", flush=True)
    print(f"  {'minutes':>8}{'runs made':>12}{'MB':>8}", flush=True)
    begin = time.perf_counter()
    print(f"  {0:>8.1f}{0:>12,}{memory_mb(pid):>8.0f}", flush=True)
    for client in clients:
        client.start()
    for moment in range(1, MOMENTS + 1):
        time.sleep(max(0.0, begin + minutes * 60 * moment / MOMENTS - time.perf_counter()))
        print(f"  {(time.perf_counter() - begin) / 60:>8.1f}{rounds.value:>12,}{memory_mb(pid):>8.0f}", flush=True)
    stop.set()
    for client in clients:
        client.join()


def memory_mb(pid: int) -> float:
    """Resident memory of the processes of a session, in MB; pages that they share are counted in each."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == pid:
            total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return total / 1e6


def _mixed(uri: str, stop: Any, rounds: Any) -> None:
    client = MlflowClient(uri, uri)
    while not stop.is_set():
        run = short_run(client)
        client.log_batch(run, points(200))
        client.get_run(run)
        client.get_metric_history(run, "m1")
        client.search_runs(["0"], "metrics.m1 > 0.5", order_by=["metrics.m2 DESC"], max_results=20)
        with rounds.get_lock():
            rounds.value += 1
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="of mixed load on each server, for its memory")
    parser.add_argument("--only", choices=["rows", "memory"], help="one of the two parts")
    parser.add_argument("--lake", action="store_true", help="memory of the lake's server alone, without PostgreSQL's")
    options = parser.parse_args()
    if postgresql_programs() is None:
        sys.exit("This benchmark needs PostgreSQL: apt-get install postgresql")
    with scratch() as folder, scratch() as database_folder, postgresql(database_folder) as database:
        backends = {"PostgreSQL": database, "lake": f"delta://{folder}/lake"}
        if options.only != "memory":
            show_rows(*(one_server(backend, folder) for backend in backends.values()))
        if options.only != "rows":
            for name in ["lake"] if options.lake else backends:
                with mlflow_server(backends[name], folder, workers=2) as (uri, pid):
                    short_run(MlflowClient(uri, uri))
                    mixed_load(name, uri, pid, options.minutes)


def show_rows(peers: Measured, own: Measured) -> None:
    (peer, peer_many, limit), (ours, our_many, _) = peers, own
    rows = [Row(f"server: {work}", peer[work] * 1e3, ours[work] * 1e3, "ms", "not slower", limit=limit * 1e3) for work in peer]
    rows.append(Row(f"server: log_metric by {CLIENTS} clients", peer_many[0], our_many[0], "calls/s", "not slower", higher_is_better=True))
    rows.append(Row("the same: p99 of a call", peer_many[1] * 1e3, our_many[1] * 1e3, "ms", "not slower"))
    show("mlflow server, PostgreSQL (peer) and lake (ours)", rows)


def one_server(backend: str, folder: Path) -> Measured:
    with mlflow_server(backend, folder, workers=2) as (uri, _):
        client = MlflowClient(uri, uri)
        short_run(client)
        limit = statistics.median(median(lambda: urllib.request.urlopen(f"{uri}/health").read(), 100) for _ in range(3))
        return measure(client), together(uri), limit


if __name__ == "__main__":
    main()
