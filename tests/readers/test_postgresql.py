"""An MLflow database in PostgreSQL gives the rows that its server gives, with ADBC's driver and without."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spark_tracking import read
from spark_tracking.errors import PermissionRefused
from spark_tracking.readers import open_reader, sql
from spark_tracking.readers.query import Query
from spark_tracking.readers.schemas import TABLES

History = Callable[[str, Path], None]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server on loopback that asks for a password; the URI of an empty database."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    pytest.importorskip("psycopg2")
    programs, folder = found[-1].parent, Path("/tmp") / f"spark-tracking-pg-{os.getpid()}"
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # PostgreSQL refuses to run as root
    folder.mkdir()
    (folder / "password").write_text("s3cret")
    if as_user:
        shutil.chown(folder, "postgres")
        shutil.chown(folder / "password", "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*command: str) -> None:
        subprocess.run([*as_user, *command], check=True, stdout=subprocess.DEVNULL)

    data = str(folder / "data")
    run(str(programs / "initdb"), "-D", data, "-U", "me", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "-E", "UTF8")
    options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
    run(str(programs / "pg_ctl"), "-D", data, "-l", str(folder / "log"), "-w", "-o", options, "start")
    try:
        yield f"postgresql+psycopg2://me:s3cret@127.0.0.1:{port}/postgres"
    finally:
        run(str(programs / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def filled(postgresql: str, tmp_path_factory: pytest.TempPathFactory, history: History) -> str:
    """The history in it, written by MLflow."""
    history(postgresql, tmp_path_factory.mktemp("artifacts"))
    return postgresql


@pytest.mark.parametrize("adbc", [True, False], ids=["adbc", "sqlalchemy"])
def test_postgresql_gives_the_rows_of_sqlite(filled: str, database_uri: str, adbc: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if adbc:
        pytest.importorskip("adbc_driver_postgresql")
    else:
        monkeypatch.setattr(sql, "_adbc", lambda *_: None)
    names = ["run_name", "experiment_id", "start_time", "end_time", "status", "params", "tags", "aggregated_metrics", "datasets", "metrics"]
    rows = []
    for uri in (filled, database_uri):
        table = read("runs_latest", tracking_uri=uri, filter="metrics.acc > 0.1 and params.text LIKE '%x%'", view_type="all").read_all()
        rows.append(sorted(map(repr, table.select(names).to_pylist())))
    assert rows[0] == rows[1]
    assert rows[0]
    for table in TABLES:
        counts = {read(table, tracking_uri=uri, view_type="all").read_all().num_rows for uri in (filled, database_uri)}
        assert len(counts) == 1, table


def test_parts_of_postgresql_are_the_whole(filled: str) -> None:
    reader = open_reader(filled)
    query = reader.resolve(Query("run_metrics_history", ordered=False))
    parts = [sum(batch.num_rows for batch in reader.read(query, part)) for part in reader.split(query, 3)]
    assert len(parts) == 3
    assert sum(parts) == read("run_metrics_history", tracking_uri=filled).read_all().num_rows


def test_a_wrong_password_is_a_refusal_that_does_not_repeat_it(filled: str) -> None:
    with pytest.raises(PermissionRefused) as caught:
        read("runs", tracking_uri=filled.replace("s3cret", "hunter2"))
    assert "hunter2" not in str(caught.value)
    assert "s3cret" not in open_reader(filled).name
