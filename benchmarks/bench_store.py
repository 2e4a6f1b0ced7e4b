"""The lake as MLflow's backend against MLflow's own SQLite store: the same calls on both, in one run.

    python benchmarks/bench_store.py                  all rows, 100,000 runs (about 20 minutes)
    python benchmarks/bench_store.py --runs 10000     smaller
    python benchmarks/bench_store.py batch single     only some rows: batch single short end many grid search history growth

Peer: `sqlite:///` by MLflow's SqlAlchemyStore, by the same client. 100,000 runs get into SQLite by plain SQL, since its store
would take hours; the lake's go through `Lake.write`.
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing as mp
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from _harness import Row, median, scratch, show, times

warnings.filterwarnings("ignore")
logging.disable(logging.INFO)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, RunTag  # noqa: E402

FILTER = "metrics.m1 > 0.5 AND params.p3 = '0.01'"
ORDER = ["metrics.m2 DESC"]


def clients(folder: Path) -> tuple[MlflowClient, MlflowClient]:
    """(peer, ours), each on a new backend."""
    peer = MlflowClient(f"sqlite:///{folder}/peer.db", f"sqlite:///{folder}/peer.db")
    ours = MlflowClient(f"delta://{folder}/lake", f"delta://{folder}/lake")
    for client in (peer, ours):
        client.search_experiments()
    return peer, ours


def points(count: int, start: int = 0) -> list[Metric]:
    """Metric points of ten series."""
    now = int(time.time() * 1000)
    return [Metric(f"m{i % 10}", random.random(), now, start + i // 10) for i in range(count)]


def batch(folder: Path) -> list[Row]:
    """log_batch of 1,000 metrics, one client."""
    per_call = [_batch(client, calls) for client, calls in zip(clients(folder), (20, 200))]
    peer, ours = per_call
    return [
        Row("log_batch of 1,000 metrics", peer * 1e3, ours * 1e3, "ms", ">= 15x, aim 30x"),
        Row("the same as points/s", 1000 / peer, 1000 / ours, "points/s", ">= 300,000/s", higher_is_better=True),
    ]


def _batch(client: MlflowClient, calls: int) -> float:
    run = client.create_run("0").info.run_id
    batches = iter([points(1000, i * 100) for i in range(calls)])
    return statistics.median(times(lambda: client.log_batch(run, metrics=next(batches)), calls))


def _single(client: MlflowClient, calls: int) -> float:
    run = client.create_run("0").info.run_id
    steps = iter(range(calls))
    return median(lambda: client.log_metric(run, "loss", 0.5, step=next(steps)), calls)


def single(folder: Path) -> list[Row]:
    """log_metric one by one, synced to disk."""
    per_call = [_single(client, calls) for client, calls in zip(clients(folder), (300, 3000))]
    with open(folder / "raw", "wb", buffering=0) as file:

        def append() -> None:
            file.write(b"x" * 150)
            os.fdatasync(file.fileno())

        limit = median(append, 1000)
    return [Row("log_metric, one by one", per_call[0] * 1e3, per_call[1] * 1e3, "ms", ">= 10x, aim 20x", limit=limit * 1e3)]


SHORT = """
import sys, time, atexit
from mlflow import MlflowClient
from mlflow.entities import Metric
client = MlflowClient(sys.argv[1], sys.argv[1])
run = client.create_run("0").info.run_id
client.log_batch(run, metrics=[Metric("m", i, 0, i) for i in range(100)])
client.set_terminated(run)
begin = time.perf_counter()
if sys.argv[1].startswith("delta"):
    from spark_tracking.lake import Lake
    Lake.open(sys.argv[1]).close()
print(time.perf_counter() - begin)
"""


def short(folder: Path) -> list[Row]:
    """create_run + log_batch + end, one short process after another."""
    clients(folder)
    walls, exits = [], []
    for uri in (f"sqlite:///{folder}/peer.db", f"delta://{folder}/lake"):
        taken, exit_ = [], []
        for _ in range(5):
            begin = time.perf_counter()
            done = subprocess.run([sys.executable, "-W", "ignore", "-c", SHORT, uri], capture_output=True, text=True, check=True)
            taken.append(time.perf_counter() - begin)
            exit_.append(float(done.stdout.split()[-1]))
        walls.append(statistics.median(taken))
        exits.append(statistics.median(exit_))
    return [
        Row("a short process: create, log_batch, end (whole)", *walls, "s", "no slower"),
        Row("what our close at its exit takes", exits[0], exits[1], "s", "< 0.2 s"),
    ]


def end(folder: Path) -> list[Row]:
    """The end of a run, after which any Delta engine sees all of it: on a new lake, and after 1,000 ends."""
    both = clients(folder)
    first = [_end(client, 30) for client in both]
    for client in both:
        for _ in range(1000):
            client.set_terminated(client.create_run("0").info.run_id)
    later = [_end(client, 30) for client in both]
    return [
        Row(work, peer * 1e3, ours * 1e3, "ms", "stated (peer: one row changes)")
        for work, (peer, ours) in {"the end of a run": first, "the same after 1,000 ends": later}.items()
    ]


def _end(client: MlflowClient, count: int) -> float:
    taken = []
    for _ in range(count):
        run = client.create_run("0").info.run_id
        client.log_batch(run, points(20), [Param("p", "1")], [RunTag("t", "x")])
        taken += times(lambda run=run: client.set_terminated(run), 1)
    return statistics.median(taken)


def many(folder: Path) -> list[Row]:
    """16 processes that log together."""
    clients(folder)
    context = mp.get_context("spawn")
    results = []
    for uri, calls in ((f"sqlite:///{folder}/peer.db", 2), (f"delta://{folder}/lake", 100)):
        ready, go, out = context.Semaphore(0), context.Event(), context.Queue()
        writers = [context.Process(target=_writer, args=(uri, calls, ready, go, out)) for _ in range(16)]
        for writer in writers:
            writer.start()
        for _ in writers:
            ready.acquire()
        go.set()
        ends = [out.get() for _ in writers]
        for writer in writers:
            writer.join()
        taken = sorted(t for _, _, ts in ends for t in ts)
        wall = max(e[1] for e in ends) - min(e[0] for e in ends)
        results.append((16 * calls * 1000 / wall, taken[len(taken) * 99 // 100] * 1e3))
    (peer_rate, peer_p99), (our_rate, our_p99) = results
    return [
        Row("16 processes, log_batch of 1,000: sum", peer_rate, our_rate, "points/s", ">= 300,000/s", higher_is_better=True),
        Row("the same: p99 of a call", peer_p99, our_p99, "ms", "< 100 ms"),
    ]


def _writer(uri: str, calls: int, ready: Any, go: Any, out: Any) -> None:
    warnings.filterwarnings("ignore")
    client = MlflowClient(uri, uri)
    run = client.create_run("0").info.run_id
    batches = [points(1000, i * 100) for i in range(calls)]
    gc.collect()
    gc.freeze()  # else one look of the garbage collector over the benchmark's own batches is the 99th percentile of both
    ready.release()
    go.wait()
    begin, taken = time.time(), []
    for batch_ in batches:
        one = time.perf_counter()
        client.log_batch(run, metrics=batch_)
        taken.append(time.perf_counter() - one)
    out.put((begin, time.time(), taken))


def grid(folder: Path) -> list[Row]:
    """Time in the store during autolog of a GridSearch with 100 candidates."""
    seconds = []
    for uri in (f"sqlite:///{folder}/peer.db", f"delta://{folder}/lake"):
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", GRID, uri], capture_output=True, text=True, check=True)
        seconds.append(float(done.stdout.split()[-1]))
    return [Row("autolog of a GridSearch, 100 candidates: in the store", *seconds, "s", "<= 0.3 of SQLite's")]


GRID = """
import sys, time, functools, logging
logging.disable(logging.WARNING)
import mlflow
from mlflow.tracking._tracking_service.utils import _get_store
mlflow.set_tracking_uri(sys.argv[1])
store, spent, depth = _get_store(), [0.0], [0]
def timed(call):
    @functools.wraps(call)
    def run(*args, **kwargs):
        if depth[0]:
            return call(*args, **kwargs)
        depth[0] += 1
        begin = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            depth[0] -= 1
            spent[0] += time.perf_counter() - begin
    return run
for name in dir(store):
    if not name.startswith("_") and callable(getattr(store, name)):
        setattr(store, name, timed(getattr(store, name)))
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
mlflow.sklearn.autolog(max_tuning_runs=None, log_models=False, silent=True)
X, y = load_iris(return_X_y=True)
with mlflow.start_run():
    GridSearchCV(LogisticRegression(max_iter=20), {"C": [0.01 * i for i in range(1, 101)]}, cv=2).fit(X, y)
print(spent[0])
"""


def fill(folder: Path, count: int) -> None:
    """`count` runs of 27 keys in both backends."""
    from spark_tracking.lake import Event, Lake, MetricBlock

    database = sqlite3.connect(folder / "peer.db")
    lake = Lake.open(f"{folder}/lake", create=True)
    random.seed(1)
    base = int(time.time() * 1000) - count * 1000
    for i in range(count):
        ms = base + i * 1000
        run = f"{ms:012x}7{random.getrandbits(12):03x}8{random.getrandbits(60):015x}"
        params = [(f"p{j}", str(random.choice([0.1, 0.01, 0.001]))) for j in range(9)]
        tags = [(f"t{j}", random.choice("abcdef")) for j in range(9)]
        metrics = [(f"m{j}", random.random()) for j in range(9)]
        database.execute(
            "INSERT INTO runs (run_uuid, name, source_type, source_name, user_id, status, start_time, end_time, lifecycle_stage,"
            " artifact_uri, experiment_id) VALUES (?, ?, 'LOCAL', '', 'u', 'FINISHED', ?, ?, 'active', '', 0)",
            (run, f"r{i}", ms, ms + 500),
        )
        database.executemany("INSERT INTO params (run_uuid, key, value) VALUES (?, ?, ?)", [(run, *p) for p in params])
        database.executemany("INSERT INTO tags (run_uuid, key, value) VALUES (?, ?, ?)", [(run, *t) for t in tags])
        for table in ("metrics", "latest_metrics"):
            database.executemany(
                f"INSERT INTO {table} (run_uuid, key, value, timestamp, step, is_nan) VALUES (?, ?, ?, ?, 0, 0)",
                [(run, *m, ms) for m in metrics],
            )
        attrs = {"created": ms, "experiment_id": 0, "run_name": f"r{i}", "created_by": "u", "status": "FINISHED"}
        attrs |= {"lifecycle_stage": "active", "start_time": ms, "end_time": ms + 500, "artifact_uri": f"file:///x/{run}"}
        events = [Event("run", run, "attr", key, str(value)) for key, value in attrs.items()]
        events += [Event("run", run, "param", *p) for p in params] + [Event("run", run, "tag", *t) for t in tags]
        block = MetricBlock(run, "0", [m[0] for m in metrics], [m[1] for m in metrics], [ms] * 9, [0] * 9)
        lake.write(events, [block])
    database.commit()
    lake.close()


def search(folder: Path, count: int) -> list[Row]:
    """search_runs over many runs, quiet and while four processes write; get_run of new and old ones."""
    peer, ours = clients(folder)
    fill(folder, count)

    def page(client: MlflowClient) -> Any:
        return client.search_runs(["0"], FILTER, order_by=ORDER, max_results=100)

    assert [r.info.run_id for r in page(peer)] == [r.info.run_id for r in page(ours)]
    rows = [
        Row(
            f"search_runs, page of 100 in {count:,}", median(lambda: page(peer), 5), median(lambda: page(ours), 15), "s", ">= 5x, aim 0.1 s"
        )
    ]
    old = [run.info.run_id for run in page(ours)]
    fresh = MlflowClient(f"delta://{folder}/lake")
    new = ours.create_run("0").info.run_id
    peer_new = peer.create_run("0").info.run_id
    rows.append(
        Row(
            "get_run of a run just written",
            median(lambda: peer.get_run(peer_new), 50),
            median(lambda: ours.get_run(new), 200),
            "s",
            "<= 0.001 s",
        )
    )
    many_old = iter(_old_runs(folder, 60))
    rows.append(
        Row(
            f"get_run of an old one in {count:,}",
            median(lambda: peer.get_run(old[0]), 50),
            median(lambda: fresh.get_run(next(many_old)), 50),
            "s",
            "<= 0.02 s",
        )
    )
    context = mp.get_context("spawn")
    stop = context.Event()
    writers = [context.Process(target=_background_writer, args=(f"delta://{folder}/lake", stop)) for _ in range(4)]
    for writer in writers:
        writer.start()
    time.sleep(6)
    busy = median(lambda: page(ours), 15)
    stop.set()
    for writer in writers:
        writer.join()
    rows.append(Row("search_runs while 4 processes write (peer: quiet)", rows[0].peer, busy, "s", ">= 5x, aim 0.1 s"))
    return rows


def _old_runs(folder: Path, count: int) -> list[str]:
    with sqlite3.connect(folder / "peer.db") as database:
        return [row[0] for row in database.execute(f"SELECT run_uuid FROM runs ORDER BY random() LIMIT {count}")]


def _background_writer(uri: str, stop: Any) -> None:
    warnings.filterwarnings("ignore")
    client = MlflowClient(uri, uri)
    while not stop.is_set():
        run = client.create_run("0").info.run_id
        client.log_batch(run, points(20), [Param("p3", "0.5")], [RunTag("t", "x")])
        client.set_terminated(run)
        time.sleep(0.05)


def history(folder: Path, size: int = 1_000_000) -> list[Row]:
    """get_metric_history in proportion to what it returns; a million points of one run, and a short run beside them."""
    _, ours = clients(folder)
    long_, short_ = (ours.create_run("0").info.run_id for _ in range(2))
    now = int(time.time() * 1000)
    for start in range(0, size, 1000):
        ours.log_batch(long_, [Metric("loss", 0.5, now, start + i) for i in range(1000)])
    ours.log_batch(short_, [Metric("loss", 0.5, now, i) for i in range(1000)])
    whole = median(lambda: ours.get_metric_history(long_, "loss"), 3)
    few = median(lambda: ours.get_metric_history(short_, "loss"), 10)
    return [Row(f"get_metric_history: {size:,} points / 1,000 beside them", whole, few, "s", "in proportion")]


def growth(folder: Path, calls: int = 10_000) -> list[Row]:
    """Write and read p50 at 10M points and 100,000 calls, against an empty lake."""
    from spark_tracking.lake import Lake

    _, ours = clients(folder)

    def probe() -> tuple[float, float]:
        run = ours.create_run("0").info.run_id
        steps = iter(range(500))
        write = median(lambda: ours.log_metric(run, "loss", 0.5, step=next(steps)), 500)
        return write, median(lambda: ours.get_run(run), 200)

    empty = probe()
    now = int(time.time() * 1000)
    runs = [ours.create_run("0").info.run_id for _ in range(100)]
    for i in range(calls):
        ours.log_batch(runs[i % 100], [Metric(f"m{j % 10}", 0.5, now, i * 100 + j // 10) for j in range(1000)])
    for i in range(calls * 9):
        ours.log_metric(runs[i % 100], "single", 0.5, step=i)
    full = probe()
    lake = Lake.open(f"{folder}/lake")
    lake.settle()
    files = max(table.files for table in lake.info())
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", OPEN, f"{folder}/lake"], capture_output=True, text=True, check=True)
    used = sum(f.stat().st_size for f in (folder / "lake").rglob("*") if f.is_file())
    lake.compact()
    compact = sum(table.size for table in lake.info())
    del begin
    return [
        Row(
            f"log_metric after {calls * 1000:,} points and {calls * 10:,} calls",
            empty[0] * 1e3,
            full[0] * 1e3,
            "ms",
            "<= 1.2x of empty (peer column)",
        ),
        Row("get_run, the same", empty[1] * 1e3, full[1] * 1e3, "ms", "<= 1.2x of empty (peer column)"),
        Row("live files of the largest table", 200, files, "files", "<= 200"),
        Row("opening in a new process, beyond imports", 0.5, float(done.stdout.split()[-1]), "s", "< 0.5 s"),
        Row("disk used, against the compacted size (peer column)", compact / 1e6, used / 1e6, "MB", "within 2x"),
    ]


OPEN = """
import sys, time
from spark_tracking.lake import Lake
begin = time.perf_counter()
Lake.open(sys.argv[1])
print(time.perf_counter() - begin)
"""

SECTIONS = {"batch": batch, "single": single, "short": short, "end": end, "many": many, "grid": grid, "history": history, "growth": growth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, "search", []])
    parser.add_argument("--runs", type=int, default=100_000)
    options = parser.parse_args()
    for name in options.sections or [*SECTIONS, "search"]:
        with scratch() as folder:
            rows = search(folder, options.runs) if name == "search" else SECTIONS[name](folder)
        show(f"store: {name}", rows)


if __name__ == "__main__":
    main()
