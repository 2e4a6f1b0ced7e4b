"""Real peers on loopback: an `mlflow server`, and what Databricks puts into a notebook's process."""

from __future__ import annotations

import shutil
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import requests

from tests.servers import mlflow_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real `mlflow server` on SQLite."""
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(f"sqlite:///{folder}/mlflow.db", folder) as started:
        yield started.url


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
