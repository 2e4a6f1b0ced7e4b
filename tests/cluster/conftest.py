"""Real peers on loopback: an `mlflow server`, and what Databricks puts into a notebook's process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import requests


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real `mlflow server` on SQLite."""
    folder = tmp_path_factory.mktemp("server")
    address = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    environ = {name: text for name, text in os.environ.items() if not name.startswith(("MLFLOW_", "SPARK_TRACKING_"))}
    environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # five processes that tests have no use for
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environ, start_new_session=True) as process,
    ):
        try:
            wait_for(lambda: requests.get(f"{address}/health", timeout=5).ok, "mlflow server")
            yield address
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its graceful end takes ten seconds


def wait_for(ready: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if ready():
                return
        except (OSError, requests.RequestException):
            pass
        assert time.monotonic() < deadline, f"{what} did not become ready in {seconds} s"
        time.sleep(0.2)


@pytest.fixture
def databricks_notebook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This process looks to MLflow like a Databricks notebook: the runtime's own module gives the context."""
    context = types.SimpleNamespace(
        isInNotebook=True, isInJob=False, notebookId="42", notebookPath="/Users/ann@example.com/churn", clusterId="0101-cluster",
        aclPathOfAclRoot="/workspace/42", workspaceUrl=None, workspaceId=None, apiUrl=None, webappUrl=None,
    )  # fmt: skip
    module = types.ModuleType("dbruntime.databricks_repl_context")
    module.get_context = lambda: context  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dbruntime", types.ModuleType("dbruntime"))
    monkeypatch.setitem(sys.modules, "dbruntime.databricks_repl_context", module)
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "17.3")
    monkeypatch.setenv("DB_CLUSTER_ID", "0101-cluster")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to create its tables; each test copies them."""
    file = tmp_path_factory.mktemp("template") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def database(tmp_path: Path, empty_database: Path) -> str:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    return uri
