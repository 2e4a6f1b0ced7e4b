"""moto's S3 on loopback, one request at a time so that its conditional PUTs are atomic, as S3's are.

    python s3_server.py PORT [DELAY_MS]

`DELAY_MS` is what each request takes beforehand, side by side with others, as on a network. `GET /_requests` answers what was
asked since the last time, as JSON: `["PUT /bucket/key", …]`.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class OneAtATime:
    """moto's application behind a lock, a delay and a list of what came."""

    def __init__(self, delay: float) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._delay = delay
        self._lock = threading.Lock()
        self._requests: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/_requests":
            requests, self._requests = self._requests, []
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(requests).encode()]
        time.sleep(self._delay)
        query = environ.get("QUERY_STRING", "")
        kind = "LIST" if "list-type" in query else "DELETE" if query.startswith("delete") else environ["REQUEST_METHOD"]
        with self._lock:
            self._requests.append(f"{kind} {environ['PATH_INFO']}" + (f"?{query}" if kind == "LIST" else ""))
            return list(self._moto(environ, start_response))


class Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections, as clients expect


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    delay = float(sys.argv[2]) / 1000 if len(sys.argv) > 2 else 0.0
    server = make_server("127.0.0.1", int(sys.argv[1]), OneAtATime(delay), threaded=True, request_handler=Handler)
    server.serve_forever()
