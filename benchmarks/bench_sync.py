"""Sync: a database and a server into a lake, again with nothing changed, and with little changed; against mlflow-export-import.

    python benchmarks/bench_sync.py [--runs 10000] [--many 100000] [--peer-runs 100] [--peer-python PYTHON] [--only first,rest,again]

mlflow-export-import copies by writing each run to files and logging them again; it copies a part (`--peer-runs`), and runs a second are
compared: its time is the same for each run. It wants other versions than ours: `--peer-python` names the Python of an environment with
`pip install mlflow-export-import mlflow tabulate`. It reads the database directly and writes into a server, without which it fails on each
run but the first ("experiment already exists").
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _harness import Row, scratch, show
from bench_read_runs import make_database

from tests.servers import mlflow_server

POINTS_A_METRIC = 10
_CHILD = (
    "import json, resource, sys, time; from spark_tracking.mirror import sync; begin = time.perf_counter(); r = sync(*sys.argv[1:3]); "
    "print(json.dumps([time.perf_counter() - begin, r.wrote, r.points, len(r.failures), "
    "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024]))"
)


def main() -> None:
    """Make the data, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--peer-runs", type=int, default=100)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--only", default="first,rest,again")
    parser.add_argument("--folder", type=Path, help="Keep the data here, for the next time.")
    asked = parser.parse_args()
    parts: dict[str, Callable[[Path, Any], list[Row]]] = {"first": first, "rest": rest, "again": again}
    rows: list[Row] = []
    with scratch() as temporary:
        folder = asked.folder or temporary
        folder.mkdir(parents=True, exist_ok=True)
        for name in asked.only.split(","):
            rows += parts[name](folder, asked)
            show(f"Sync, {name}", rows[-3:])
    show("Sync", rows)


def database(folder: Path, runs: int, steps: int) -> str:
    """An MLflow database with 10 metrics of so many points, 10 params and 7 tags a run."""
    path = folder / f"mlflow-{runs}-{steps}.db"
    uri = f"sqlite:///{path}"
    if path.exists():
        return uri
    make_database(uri, {"1": runs})
    with sqlite3.connect(path) as db:
        for step in range(1, steps):
            db.execute(
                "INSERT INTO metrics (key, value, timestamp, step, is_nan, run_uuid) "
                f"SELECT key, value + {step}, timestamp + {step}, {step}, 0, run_uuid FROM metrics WHERE step = 0"
            )
        latest = f"value = value + {steps - 1}, timestamp = timestamp + {steps - 1}, step = {steps - 1}"
        db.execute(f"UPDATE latest_metrics SET {latest}")
    return uri


def synced(source: str, target: str) -> tuple[float, int, int, int]:
    """A sync in a process of its own: seconds, changes written, points, peak memory in MB."""
    told = subprocess.run([sys.executable, "-c", _CHILD, source, target], check=True, stdout=subprocess.PIPE).stdout
    seconds, wrote, points, failures, memory = json.loads(told.splitlines()[-1])
    assert not failures, f"{failures} things were not copied"
    return seconds, wrote, points, memory


def first(folder: Path, asked: Any) -> list[Row]:
    """The first sync from SQLite, in runs a second, and the peer's on a part."""
    uri = database(folder, asked.runs, POINTS_A_METRIC)
    seconds, _, points, memory = synced(uri, str(folder / f"lake-first-{time.time_ns()}"))
    assert points == asked.runs * 10 * POINTS_A_METRIC
    peer = peer_rate(folder, database(folder, asked.peer_runs, POINTS_A_METRIC), asked)
    print(f"peak memory of a first sync of {asked.runs:,} runs: {memory} MB")
    return [Row(f"first sync of {asked.runs:,} runs, 1M points, from SQLite", peer, asked.runs / seconds, "runs/s", ">= 20x", True)]


def rest(folder: Path, asked: Any) -> list[Row]:
    """The first and second sync from a server."""
    uri, lake = database(folder, asked.runs, POINTS_A_METRIC), str(folder / f"lake-rest-{time.time_ns()}")
    with mlflow_server(uri, folder) as (url, _):
        log = folder / f"server-{url.rpartition(':')[2]}.log"
        seconds, _, points, _ = synced(url, lake)
        assert points == asked.runs * 10 * POINTS_A_METRIC
        before = log.read_text().count("runs/search")
        again_seconds, wrote, _, _ = synced(url, lake)
        assert wrote == 0
        pages, histories = log.read_text().count("runs/search") - before, log.read_text().count("get-history")
    peer = peer_rate(folder, database(folder, asked.peer_runs, POINTS_A_METRIC), asked)
    print(f"the first sync asked {histories} times for histories; the second {pages} times for runs, some 26 of them to cut the range")
    return [
        Row(f"first sync of {asked.runs:,} runs, 1M points, over REST", peer, asked.runs / seconds, "runs/s", ">= 20x", True),
        Row("second sync over REST, nothing changed (peer: all again)", asked.runs / peer, again_seconds, "s", "one listing"),
    ]


def again(folder: Path, asked: Any) -> list[Row]:
    """The second sync from a database and from a lake, with nothing and with 100 runs changed."""
    uri, lake, second = database(folder, asked.many, 1), str(folder / "lake-many"), str(folder / "lake-second")
    memory = max(synced(uri, lake)[3], synced(lake, second)[3])
    rows = []
    for name, source, target in (("database", uri, lake), ("lake", lake, second)):
        seconds, wrote, _, _ = min(synced(source, target) for _ in range(3))
        assert wrote == 0
        rows.append(Row(f"second sync, nothing changed, {asked.many:,} runs, 1M points, {name}", 5, seconds, "s", "< 5 s (left)"))
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as db:
        run_ids = [id for (id,) in db.execute("SELECT run_uuid FROM runs ORDER BY start_time LIMIT 100")]
        db.executemany(
            "INSERT OR REPLACE INTO tags (key, value, run_uuid) VALUES ('changed', ?, ?)", [(str(time.time_ns()), i) for i in run_ids]
        )
    seconds, wrote, _, _ = synced(uri, lake)
    assert wrote == 100, wrote
    rows.append(Row("the same with 100 runs changed", rows[0].ours, seconds, "s", "O(changes) more"))
    print(f"peak memory of a first sync of {asked.many:,} runs: {memory} MB")
    return rows


def peer_rate(folder: Path, source: str, asked: Any) -> float:
    """Runs a second of mlflow-export-import: export from the database, import into a server."""
    export = folder / f"export-{time.time_ns()}"
    with mlflow_server(f"sqlite:///{folder / f'peer-{time.time_ns()}.db'}", folder) as (target, _):
        begin = time.perf_counter()
        _peer(asked, "export_experiment", source, "--experiment", "1", "--output-dir", str(export))
        _peer(asked, "import_experiment", target, "--experiment-name", "peer", "--input-dir", str(export))
        return float(asked.peer_runs / (time.perf_counter() - begin))


def _peer(asked: Any, what: str, uri: str, *arguments: str) -> None:
    command = [asked.peer_python, "-m", f"mlflow_export_import.experiment.{what}", *arguments]
    done = subprocess.run(command, env={**os.environ, "MLFLOW_TRACKING_URI": uri}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"mlflow-export-import failed; does --peer-python have it?\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
