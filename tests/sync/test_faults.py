"""What a sync survives: kills, full disks, restarts, sources that grow, odd names, clocks that differ."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from spark_tracking.address import LakeUri
from spark_tracking.lake import Lake
from spark_tracking.mirror import sync
from tests.servers import mlflow_server
from tests.sync.conftest import T0, portable, shown

_SYNC = "import sys; from spark_tracking.mirror import sync; r = sync(sys.argv[1], sys.argv[2]); sys.exit(not r.ok)"
_SMALL = "import spark_tracking.mirror.copying as c, spark_tracking.mirror.bookmarks as b; c.THINGS_AT_ONCE = 2; b.ROWS_PER_FILE = 3\n"


def start(source: str, target: str, before: str = "", **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", before + _SYNC, source, target], **options)


@pytest.mark.slow
def test_kills_anywhere_leave_nothing_double_and_nothing_half(database: str, lake_uri: str) -> None:
    """The process is killed at moments spread over a whole sync into a lake; the next one goes on."""
    begin = time.monotonic()
    assert start(database, f"{lake_uri}-timed", _SMALL).wait(120) == 0
    whole = time.monotonic() - begin
    luck = random.Random(6)
    killed = 0
    for _ in range(10):
        process = start(database, lake_uri, _SMALL)
        time.sleep(whole * (0.4 + 0.6 * luck.random()))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        if LakeUri.parse(lake_uri).path.joinpath("lake.json").exists():
            there, expected = shown(lake_uri)["runs"], shown(database)["runs"]
            assert all(run == expected[id] for id, run in there.items())  # whole or not there
    assert killed >= 3
    assert sync(database, lake_uri).ok
    assert shown(lake_uri) == shown(database)
    assert sync(database, lake_uri).wrote == 0
    assert Lake.open(lake_uri).check().ok


def test_two_syncs_of_one_source_into_one_lake_at_once(database: str, lake_uri: str) -> None:
    both = [start(database, lake_uri) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert shown(lake_uri) == shown(database)
    assert sync(database, lake_uri).wrote == 0


def test_a_full_disk_in_the_lake_fails_and_the_next_sync_makes_it_good(database: str, lake_uri: str, tmp_path: Path) -> None:
    big = MlflowClient(database).create_run("1", run_name="big").info.run_id
    for i in range(20):
        MlflowClient(database).log_batch(big, [Metric(f"m{k}", random.random(), T0 + i, i) for k in range(900)])
    limit = "import resource as r, signal as s; s.signal(s.SIGXFSZ, s.SIG_IGN); r.setrlimit(r.RLIMIT_FSIZE, (150000, 150000))\n"
    with (tmp_path / "errors").open("wb") as errors:
        assert start(database, lake_uri, limit, stderr=errors).wait(180) != 0
    assert sync(database, lake_uri).ok
    assert shown(lake_uri) == shown(database)
    assert Lake.open(lake_uri).check().ok


_WRITER = """
import itertools, sys
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient
client = MlflowClient(sys.argv[1])
for i in itertools.count():
    run = client.create_run("1", start_time=1_700_000_000_100 + i, run_name=f"more {i}").info.run_id
    client.log_batch(run, [Metric("acc", float(s), 1_700_000_000_000 + s, s) for s in range(20)], [Param("i", str(i))])
    print(i, flush=True)
"""


def test_a_source_that_grows_while_it_is_read_arrives_whole_with_the_next_sync(database: str, lake_uri: str) -> None:
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, database], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    try:
        for _ in range(3):
            writer.stdout.readline()
            assert sync(database, lake_uri).ok
    finally:
        writer.kill()
        writer.wait()
    expected = shown(database)  # also rolls back what the writer was at
    assert sync(database, lake_uri).ok
    assert shown(lake_uri) == expected
    assert len(shown(lake_uri)["runs"]) > 8
    assert sync(database, lake_uri).wrote == 0


_OTHER_WRITER = "import sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0.2).execute('BEGIN IMMEDIATE')"


def test_reading_a_database_leaves_this_process_s_locks_on_it_alone(database: str, lake_uri: str) -> None:
    """Locks belong to a process: a second copy of SQLite in it, such as ADBC's, would take the first one's away."""
    path = database.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO experiment_tags (key, value, experiment_id) VALUES ('half', 'written', 1)")
        assert sync(database, lake_uri).ok
        other = subprocess.run([sys.executable, "-c", _OTHER_WRITER, path], capture_output=True, text=True, check=False)
        assert "database is locked" in other.stderr


ODD = ["a/b/c", 'it\'s "quoted"', "🚀 ünï", "x" * 250, "100% _like_", "back\\slash", " spaces ", "tags.`x` = 'y'"]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_arrive(name: str, tmp_path: Path) -> None:
    source, target = f"delta://{tmp_path / 'a'}", f"delta://{tmp_path / 'b'}"
    write_oddly(source, name)
    assert sync(source, target).ok
    assert shown(target) == shown(source)
    assert sync(source, target).wrote == 0


def write_oddly(uri: str, name: str) -> None:
    client = MlflowClient(uri, registry_uri=uri)
    experiment = client.create_experiment(name, tags={"name": name})
    run = client.create_run(experiment, start_time=T0, run_name=name)
    plain = name if all(c.isalnum() or c in "_-. /:" for c in name) else "plain"  # what MLflow allows in keys
    client.log_batch(run.info.run_id, [Metric(plain.strip(), 1.0, T0, 0)], [Param(plain.strip(), name)], [RunTag(plain.strip(), name)])
    client.create_registered_model(name.replace("/", "-").replace(":", "-"), {"name": name}, name)


def test_odd_names_arrive_on_a_server(tmp_path: Path) -> None:
    source = f"delta://{tmp_path / 'a'}"
    for name in ODD:
        write_oddly(source, name)
    with mlflow_server(f"sqlite:///{tmp_path / 'target.db'}", tmp_path) as (url, _):
        result = sync(source, url)
        assert result.ok, result.failures
        assert portable(url) == portable(source)
        assert sync(source, url).wrote == 0


@pytest.mark.slow
def test_a_target_that_is_killed_and_started_again_is_waited_for(database: str, lake_uri: str, tmp_path: Path) -> None:
    from tests.sync.proxy import Proxy

    sync(database, lake_uri)
    backend = f"sqlite:///{tmp_path / 'target.db'}"
    with mlflow_server(backend, tmp_path) as (first, _), Proxy(first) as proxy:
        down = threading.Event()

        def fault(handler: Any, passed_on: Any) -> bool:
            if len(proxy.requests) == 20 and not down.is_set():
                down.set()
                port = first.rpartition(":")[2]
                found = subprocess.run(["pgrep", "-f", f"mlflow server .*--port {port}"], capture_output=True, text=True, check=False)
                for pid in found.stdout.split():
                    os.kill(int(pid), signal.SIGKILL)
            return False

        proxy.fault = fault
        finished: list[Any] = []
        worker = threading.Thread(target=lambda: finished.append(sync(lake_uri, proxy.url)))
        worker.start()
        assert down.wait(120)
        with mlflow_server(backend, tmp_path) as (second, _):
            proxy.target = second
            worker.join(180)
            assert finished and (finished[0].ok or sync(lake_uri, proxy.url).ok)
            assert portable(second) == portable(lake_uri)


def test_a_clock_that_is_minutes_behind_changes_nothing(database: str, lake_uri: str) -> None:
    """The syncing machine's clock is behind those of the lake's other writers, and of the source."""
    early = (
        "import time; real = time.time; time.time = lambda: real() - 600; ns = time.time_ns; time.time_ns = lambda: ns() - 600 * 10**9\n"
    )
    assert sync(database, lake_uri).ok
    client = MlflowClient(database)
    run = client.search_runs(["1"], "attributes.run_name = 'run 0'")[0].info.run_id
    client.set_tag(run, "i", "changed")
    MlflowClient(lake_uri).set_tag(run, "ours", "kept")
    assert start(database, lake_uri, early).wait(120) == 0
    tags = MlflowClient(lake_uri).get_run(run).data.tags
    assert (tags["i"], tags["ours"]) == ("changed", "kept")
    assert sync(database, lake_uri).wrote == 0
