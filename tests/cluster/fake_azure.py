"""Azure on loopback: a proxy that answers for Azure's hosts, so that azure-identity and azureml-mlflow run as they are.

`HTTPS_PROXY` leads every process there, and `REQUESTS_CA_BUNDLE` makes it trusted. It gives out tokens that live an hour of
a clock which tests move, refuses expired ones as Azure does, and hands the rest on to a real `mlflow server`.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import _SocketWriter  # type: ignore[attr-defined]
from typing import Any

import requests
import trustme

WORKSPACE = ("0f1e2d3c-0000-4000-8000-00000000abcd", "rg", "ws1")
SCOPE = "/subscriptions/{}/resourceGroups/{}/providers/Microsoft.MachineLearningServices/workspaces/{}".format(*WORKSPACE)
TRACKING_URI = f"azureml://westeurope.api.azureml.ms/mlflow/v1.0{SCOPE}"
PRINCIPAL = {"AZURE_TENANT_ID": "11111111-0000-4000-8000-000000000000", "AZURE_CLIENT_ID": "c", "AZURE_CLIENT_SECRET": "hush"}
LOGIN, MANAGER, SERVER = "login.microsoftonline.com", "management.azure.com", "westeurope.api.azureml.ms"
LIFE = 3600


@dataclass
class Azure:
    """What it was asked, and what it shall answer.

    Attributes:
        clock: a file that holds by how many seconds the clock is ahead.
        tokens: when each token that was given out ends, by this clock.
        status: the resource manager's answer.
        refuse: no token for anybody.
        expired: calls that came with a token that had ended.
        prompts: device codes and log-in pages asked for.
    """

    clock: Path
    mlflow: str = ""
    address: str = ""
    tokens: dict[str, float] = field(default_factory=dict)
    status: int = 200
    refuse: bool = False
    expired: int = 0
    prompts: int = 0
    asked: list[str] = field(default_factory=list)

    def now(self) -> float:
        return time.time() + float(self.clock.read_text())

    def give(self) -> dict[str, Any]:
        token = f"token-{len(self.tokens) + 1}"
        self.tokens[token] = self.now() + LIFE
        return {"token_type": "Bearer", "expires_in": LIFE, "access_token": token, "expires_on": str(int(self.tokens[token]))}

    def environment(self, authority: Path) -> dict[str, str]:
        """What leads a process here."""
        return {
            "HTTPS_PROXY": self.address,
            "NO_PROXY": "127.0.0.1,localhost",
            "REQUESTS_CA_BUNDLE": str(authority),
            "AZURE_POD_IDENTITY_AUTHORITY_HOST": self.address,  # where a node's managed identity is asked for
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    azure: Azure
    tls: ssl.SSLContext

    def do_CONNECT(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.connection = self.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), _SocketWriter(self.connection)
        self.close_connection = False

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        host = self.headers["Host"].split(":")[0]
        status, answer = {LOGIN: self.log_in, MANAGER: self.manage, SERVER: self.track}.get(host, self.node)(body)
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PATCH = do_DELETE = do_PUT = do_GET

    def log_in(self, body: bytes) -> tuple[int, Any]:
        base = f"https://{LOGIN}/{PRINCIPAL['AZURE_TENANT_ID']}"
        if "discovery/instance" in self.path:
            aliases = {"preferred_network": LOGIN, "preferred_cache": LOGIN, "aliases": [LOGIN]}
            return 200, {"tenant_discovery_endpoint": f"{base}/v2.0/.well-known/openid-configuration", "metadata": [aliases]}
        if "openid-configuration" in self.path:
            ends = {"token_endpoint": "token", "authorization_endpoint": "authorize", "device_authorization_endpoint": "devicecode"}
            return 200, {"issuer": f"{base}/v2.0", **{name: f"{base}/oauth2/v2.0/{path}" for name, path in ends.items()}}
        if "devicecode" in self.path or "authorize" in self.path:
            self.azure.prompts += 1
            return 200, {
                "device_code": "d",
                "user_code": "U",
                "verification_uri": "http://x",
                "expires_in": 900,
                "interval": 5,
                "message": "!",
            }
        if self.azure.refuse or b"device_code" in body:
            return 401, {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."}
        return 200, self.azure.give()

    def manage(self, _: bytes) -> tuple[int, Any]:
        if self.path.startswith("/metadata"):
            return 404, {}
        self.azure.asked.append(self.headers["Authorization"])
        return self.azure.status, {"location": "westeurope"}

    def node(self, _: bytes) -> tuple[int, Any]:
        """The node's own service for managed identities."""
        if self.azure.refuse or "metadata/identity" not in self.path:
            return 400, {"error": "invalid_request", "error_description": "Identity not found"}
        return 200, self.azure.give()

    def track(self, body: bytes) -> tuple[int, Any]:
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if self.azure.tokens.get(token, 0) <= self.azure.now():
            self.azure.expired += 1
            return 401, {"error_code": "UNAUTHENTICATED", "message": "The token has expired."}
        path = re.sub(rf"^/mlflow/v\d\.0{re.escape(SCOPE)}", "", self.path)
        headers = {"Content-Type": self.headers.get("Content-Type") or "application/json"}
        found = requests.request(self.command, self.azure.mlflow + path, data=body, headers=headers, timeout=60)
        return found.status_code, found.content

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running(folder: Path, mlflow: str = "") -> Iterator[tuple[Azure, dict[str, str]]]:
    """Azure, and the variables that lead a process there."""
    azure = Azure(folder / "clock", mlflow)
    azure.clock.write_text("0")
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(LOGIN, MANAGER, SERVER).configure_cert(tls)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"azure": azure, "tls": tls}))
    azure.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield azure, azure.environment(folder / "ca.pem")
    finally:
        server.shutdown()
        server.server_close()
