"""Servers that benchmarks need as peers, on loopback: PostgreSQL from Debian, and `mlflow server`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def postgresql() -> Iterator[str]:
    """The URI of an empty database in a PostgreSQL of its own, with the settings it comes with (each commit is synced)."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        sys.exit("This benchmark needs PostgreSQL: apt-get install postgresql")
    folder, port = Path(tempfile.mkdtemp(prefix="spark-tracking-pg-")), free_port()
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # PostgreSQL refuses to run as root
    if as_user:
        shutil.chown(folder, "postgres")

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(found[-1].parent / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    run("initdb", "-U", "me", "-A", "trust", "-E", "UTF8")
    run("pg_ctl", "-l", str(folder / "log"), "-w", "-o", f"-h 127.0.0.1 -p {port} -k {folder}", "start")
    try:
        yield f"postgresql+psycopg2://me@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def mlflow_server(backend: str, folder: Path, workers: int = 2) -> Iterator[tuple[str, int]]:
    """(URI, process id) of an `mlflow server` on a backend."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    command += ["--backend-store-uri", backend, "--artifacts-destination", str(folder / "artifacts")]
    with open(folder / f"server-{port}.log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        _wait(uri, server)
        yield uri, server.pid
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def _wait(uri: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{uri}/health").read()
            return
        except OSError:
            if server.poll() is not None:
                sys.exit(f"mlflow server ended with {server.returncode}")
            time.sleep(0.5)
    sys.exit("mlflow server did not come up in two minutes")


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
