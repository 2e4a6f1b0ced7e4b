"""An MLflow database in PostgreSQL or MySQL gives the rows that SQLite gives, with ADBC's driver and without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from spark_tracking import read
from spark_tracking.errors import PermissionRefused, Unavailable
from spark_tracking.readers import database_connection, open_reader
from spark_tracking.readers.query import Query
from spark_tracking.readers.schemas import TABLES
from tests.servers import free_port, postgresql, postgresql_programs

History = Callable[[str, Path], None]
pytestmark = pytest.mark.slow


@contextmanager
def mysql(folder: Path) -> Iterator[str]:
    """A MariaDB server on loopback, which speaks MySQL's protocol and SQL; the URI of an empty database."""
    program = shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin")
    if not program:
        pytest.skip("MariaDB is not installed (apt-get install mariadb-server)")
    pymysql = pytest.importorskip("pymysql")
    user = "mysql" if os.geteuid() == 0 else os.environ["USER"]
    shutil.chown(folder, user)
    common = ["--no-defaults", f"--datadir={folder / 'data'}", f"--user={user}"]
    install = ["mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    port, path = free_port(), str(folder / "socket")
    options = ["--bind-address=127.0.0.1", f"--port={port}", f"--socket={path}", "--innodb-flush-log-at-trx-commit=0"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([program, *common, *options], stdout=log, stderr=log)
    try:
        for _ in range(100):
            try:
                connection = pymysql.connect(unix_socket=path, user="root", autocommit=True)
                break
            except pymysql.err.OperationalError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
        with connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE mlflow CHARACTER SET utf8mb4")
            cursor.execute("CREATE USER me@'127.0.0.1' IDENTIFIED BY 's3cret'")
            cursor.execute("GRANT ALL ON mlflow.* TO me@'127.0.0.1'")
        connection.close()
        yield f"mysql+pymysql://me:s3cret@127.0.0.1:{port}/mlflow"
    finally:
        server.terminate()
        server.wait(60)


@contextmanager
def quick_postgresql(folder: Path) -> Iterator[str]:
    """A PostgreSQL server that does not wait for the disk."""
    if postgresql_programs() is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    pytest.importorskip("psycopg2")
    with postgresql(folder, "fsync=off") as uri:
        yield uri


SERVERS: dict[str, Callable[[Path], AbstractContextManager[str]]] = {"postgresql": quick_postgresql, "mysql": mysql}


@pytest.fixture(scope="module", params=SERVERS)
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, history: History) -> Iterator[str]:
    """The history in a server of each kind, written by MLflow."""
    folder = Path("/tmp") / f"spark-tracking-{request.param}-{os.getpid()}"  # where the server's user may look, and short
    folder.mkdir()
    try:
        with SERVERS[request.param](folder) as uri:
            history(uri, tmp_path_factory.mktemp("artifacts"))
            yield uri
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("adbc", [True, False], ids=["adbc", "sqlalchemy"])
def test_a_database_server_gives_the_rows_of_sqlite(filled: str, database_uri: str, adbc: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if adbc and filled.startswith("mysql"):
        pytest.skip("there is no ADBC driver of MySQL")
    if adbc:
        pytest.importorskip("adbc_driver_postgresql")
    else:
        monkeypatch.setattr(database_connection, "_adbc", lambda *_: None)
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


@pytest.mark.parametrize(
    "filter",
    [
        "tags.model = 'SVM'",
        "tags.model ILIKE 'SV%'",
        "params.text LIKE '%ÜMLÄUT%'",
        "tags.UPPER != 'case'",
        "run_name = 'RUN 01'",
    ],
)
def test_filters_mind_the_case_as_on_sqlite(filled: str, database_uri: str, filter: str) -> None:
    names = [read("runs_latest", tracking_uri=uri, filter=filter).read_all()["run_name"].to_pylist() for uri in (filled, database_uri)]
    assert sorted(names[0]) == sorted(names[1])


def test_parts_of_a_database_are_the_whole(filled: str) -> None:
    reader = open_reader(filled)
    query = reader.resolve(Query("run_metrics_history", ordered=False))
    parts = [sum(batch.num_rows for batch in reader.read(query, part)) for part in reader.split(query, 3)]
    assert len(parts) == 3
    assert sum(parts) == read("run_metrics_history", tracking_uri=filled).read_all().num_rows


def test_rows_come_in_the_order_of_bytes(filled: str) -> None:
    table = read("run_metrics_history", tracking_uri=filled).read_all()
    keys = list(zip(table["run_id"].to_pylist(), table["metric_name"].to_pylist()))
    assert keys == sorted(keys)


def test_a_wrong_password_is_a_refusal_that_does_not_repeat_it(filled: str) -> None:
    with pytest.raises(PermissionRefused) as caught:
        read("runs", tracking_uri=filled.replace("s3cret", "hunter2"))
    assert "hunter2" not in str(caught.value)
    assert "s3cret" not in open_reader(filled).name


def test_a_server_that_is_not_there_is_unavailable(filled: str) -> None:
    head, _, tail = filled.rpartition(":")
    with pytest.raises(Unavailable, match="cannot be read"):
        read("runs", tracking_uri=f"{head}:1/{tail.split('/')[1]}")


def test_no_password_of_a_source_is_in_a_lake_that_mirrors_it_or_in_a_process_list(filled: str, tmp_path: Path) -> None:
    script = "import os, sys; from spark_tracking import sync; print(sync(os.environ['SOURCE_URI'], sys.argv[1]))"
    syncing = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "mirror")],
        env={**os.environ, "SOURCE_URI": filled},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    listed = ""
    while syncing.poll() is None:
        listed += subprocess.run(["ps", "-eo", "args"], check=True, capture_output=True, text=True).stdout
        time.sleep(0.1)
    assert syncing.stdout is not None
    said = syncing.stdout.read()
    assert syncing.returncode == 0, said
    assert "s3cret" not in listed + said
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert stored
    assert not [path for path in stored if b"s3cret" in path.read_bytes()]
