"""Azure ML: tokens that renew themselves, the region by one call, and the plug-in's limits. Azure is a TLS server on loopback."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from spark_tracking.cluster import azureml
from spark_tracking.errors import InvalidSetting, InvalidState, PermissionRefused, Unavailable

identity = pytest.importorskip("azure.identity", reason="azure-identity comes with spark-tracking[azure]")
trustme = pytest.importorskip("trustme", reason="makes the certificate of the fake Azure")

WORKSPACE = ("0f1e2d3c-0000-4000-8000-00000000abcd", "rg", "ws1")
PRINCIPAL = {"AZURE_TENANT_ID": "11111111-0000-4000-8000-000000000000", "AZURE_CLIENT_ID": "c", "AZURE_CLIENT_SECRET": "hush"}


@dataclass
class Azure:
    """A token endpoint and a resource manager; `tokens` counts what was given out, `status` is the manager's answer."""

    address: str = ""
    tokens: int = 0
    status: int = 200
    refuse: bool = False
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Azure]:
    state = Azure()

    class Handler(BaseHTTPRequestHandler):
        def reply(self, status: int, body: dict[str, Any]) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def do_GET(self) -> None:
            if "openid-configuration" in self.path:
                base = f"{state.address}/{PRINCIPAL['AZURE_TENANT_ID']}"
                self.reply(200, {"issuer": base, "token_endpoint": f"{base}/oauth2/v2.0/token", "authorization_endpoint": f"{base}/a"})
                return
            state.asked.append(self.headers["Authorization"])
            self.reply(state.status, {"location": "westeurope"})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if state.refuse:
                self.reply(401, {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."})
                return
            state.tokens += 1
            self.reply(200, {"token_type": "Bearer", "expires_in": 3600, "access_token": f"token-{state.tokens}"})

        def log_message(self, *_: object) -> None:
            pass

    authority = trustme.CA()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    for name, text in PRINCIPAL.items():
        monkeypatch.setenv(name, text)
    state.address = f"https://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()


def options(azure: Azure) -> dict[str, Any]:
    return {"authority": azure.address, "disable_instance_discovery": True}


def test_a_job_of_eight_hours_always_has_a_fresh_token_and_asks_once_an_hour(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    credential = azureml.credential(**options(azure))
    clock, real = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: real() + clock[0])
    for minute in range(0, 8 * 60, 5):
        clock[0] = minute * 60.0
        assert credential.get_token("https://ml.azure.com/.default").expires_on > time.time() + 60
    assert 8 <= azure.tokens <= 10


def test_a_wrong_secret_is_refused_at_once_without_a_prompt_and_without_the_secret(azure: Azure) -> None:
    azure.refuse = True
    with pytest.raises(PermissionRefused) as caught:
        azureml.token(**options(azure))
    assert "AADSTS7000215" in caught.value.message
    assert "hush" not in caught.value.message


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        (PRINCIPAL, "ClientSecretCredential"),
        ({"AZURE_CLIENT_ID": "c"}, "ManagedIdentityCredential"),
        ({}, "ManagedIdentityCredential"),
    ],
)
def test_the_environment_decides_between_service_principal_and_managed_identity(variables: dict[str, str], kind: str) -> None:
    assert type(azureml.credential(variables)).__name__ == kind


def test_the_region_is_found_by_one_call(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azureml, "token", lambda *_, real=azureml.token: real(**options(azure)))
    assert azureml.find_region(*WORKSPACE, manager=azure.address) == "westeurope"
    assert azure.asked == ["Bearer token-1"]


@pytest.mark.parametrize(("status", "error"), [(404, InvalidSetting), (403, PermissionRefused), (500, Unavailable)])
def test_a_region_that_cannot_be_found_says_why(azure: Azure, monkeypatch: pytest.MonkeyPatch, status: int, error: type[Exception]) -> None:
    monkeypatch.setattr(azureml, "token", lambda *_, real=azureml.token: real(**options(azure)))
    azure.status = status
    with pytest.raises(error):
        azureml.find_region(*WORKSPACE, manager=azure.address)


def test_a_plug_in_that_is_missing_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(azureml, "version", absent)
    with pytest.raises(InvalidState, match=r"spark-tracking\[azure\]"):
        azureml.check_plugin()


@pytest.mark.parametrize(("mlflow", "fits"), [("3.15.0", True), ("3.17.2", False)])
def test_an_mlflow_beyond_the_plug_ins_limit_is_refused(monkeypatch: pytest.MonkeyPatch, mlflow: str, fits: bool) -> None:
    """azureml-mlflow 1.62.0.post6 declares mlflow-skinny<=3.15.0."""
    monkeypatch.setattr(azureml, "version", lambda name: {"azureml-mlflow": "1.62.0", "mlflow-skinny": mlflow}[name])
    monkeypatch.setattr(azureml, "requires", lambda name: ["mlflow-skinny<=3.15.0", "azure-identity"])
    if fits:
        azureml.check_plugin()
    else:
        with pytest.raises(InvalidState, match=r"mlflow-skinny<=3\.15\.0, and 3\.17\.2 is installed"):
            azureml.check_plugin()


def test_a_start_without_the_plug_in_is_refused_and_does_not_wait_for_anybody() -> None:
    uri = f"azureml://westeurope.api.azureml.ms/mlflow/v1.0/subscriptions/{WORKSPACE[0]}/resourceGroups/rg"
    environ = {**os.environ, **PRINCIPAL, "SPARK_TRACKING_URI": f"{uri}/providers/Microsoft.MachineLearningServices/workspaces/ws1"}
    done = subprocess.run(
        [sys.executable, "-m", "spark_tracking.cluster.environment"],
        env=environ, capture_output=True, text=True, check=False, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 3
    assert "azureml-mlflow" in done.stderr
    assert "hush" not in done.stderr + done.stdout
