"""Servers on loopback that tests and benchmarks have as real peers: `mlflow server`, and PostgreSQL from Debian."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple


class Server(NamedTuple):
    """A running `mlflow server`: its URL, and the process id of its session."""

    url: str
    pid: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(backend: str, folder: Path, workers: int = 1) -> Iterator[Server]:
    """`mlflow server` on a backend; its log and the artifacts that it hands on lie in `folder`."""
    port = free_port()
    log, url = folder / f"server-{port}.log", f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    command += ["--backend-store-uri", backend, "--artifacts-destination", str(folder / "artifacts-of-server")]
    environ = {name: text for name, text in os.environ.items() if not name.startswith(("MLFLOW_", "SPARK_TRACKING_"))}
    environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # five processes that nobody here has a use for
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, env=environ, start_new_session=True)
    try:
        _wait_until_healthy(url, process, log)
        yield Server(url, process.pid)
    finally:
        # its graceful end takes ten seconds; a lake is let to settle
        with suppress(ProcessLookupError):  # a test has killed it
            os.killpg(process.pid, signal.SIGTERM if backend.startswith("delta") else signal.SIGKILL)
        process.wait(30)


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
    raise AssertionError(f"the server did not start in two minutes: {log.read_text()}")


def postgresql_programs() -> Path | None:
    """Where PostgreSQL's server programs lie, if they are installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextmanager
def postgresql(folder: Path, *settings: str) -> Iterator[str]:
    """A PostgreSQL server that asks for a password; the URI of an empty database.

    Args:
        folder: an empty one where the server's user may look, with a short path.
        settings: further ones, such as `fsync=off`; without it each commit is synced.
    """
    programs, port, data = postgresql_programs(), free_port(), str(folder / "data")
    assert programs is not None, "PostgreSQL is not installed (apt-get install postgresql)"
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # PostgreSQL refuses to run as root
    (folder / "password").write_text("s3cret")
    if as_user:
        shutil.chown(folder, "postgres")
        shutil.chown(folder / "password", "postgres")

    def run(program: str, *arguments: str) -> None:
        subprocess.run([*as_user, str(programs / program), "-D", data, *arguments], check=True, stdout=subprocess.DEVNULL, cwd="/")

    run("initdb", "-U", "me", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "-E", "UTF8")
    options = " ".join([f"-h 127.0.0.1 -p {port} -k {folder}", *(f"-c {setting}" for setting in settings)])
    run("pg_ctl", "-l", str(folder / "log"), "-w", "-o", options, "start")
    try:
        yield f"postgresql+psycopg2://me:s3cret@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
