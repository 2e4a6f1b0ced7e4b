"""What stands between a sync and a real server, and misbehaves."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["Handler", Callable[[], tuple[int, bytes]]], bool]


class Handler(BaseHTTPRequestHandler):
    """One request, whose content is `body`; `answer` sends an answer."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy
    body: bytes

    def handle_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.proxy.requests.append(f"{self.command} {self.path.partition('?')[0].rpartition('/mlflow/')[2]}")

        def passed_on() -> tuple[int, bytes]:
            headers = {"Content-Type": self.headers.get("Content-Type") or "application/json"}
            request = urllib.request.Request(self.proxy.target + self.path, self.body or None, headers, method=self.command)
            try:
                with urllib.request.urlopen(request) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()
            except OSError:
                return 502, b""

        if not self.proxy.fault(self, passed_on):
            self.answer(*passed_on())

    def answer(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None, length: int | None = None) -> None:
        """Send an answer; with a `length` beyond that of the content, it breaks off."""
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content) if length is None else length)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        if length is not None:
            self.cut()

    def cut(self) -> None:
        """Break the connection off."""
        self.close_connection = True
        self.connection.close()

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = handle_any

    def log_message(self, *args: Any) -> None:
        pass


class Proxy:
    """A proxy on loopback.

    Attributes:
        url: where to reach it.
        target: the server behind it.
        fault: may answer in the server's place, by returning True; its second argument passes the request on.
        requests: method and path of each, as they came.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.requests: list[str] = []
        self.fault: Fault = lambda handler, passed_on: False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
