"""`spark-tracking ui`: MLflow's web UI on a lake, for as long as the command runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import click
from click.core import ParameterSource

from spark_tracking.address import LakeUri
from spark_tracking.extras import require

_RUNS = "#/experiments?workflowType=machine_learning"  # MLflow's own first page shows traces, and a lake has none
_MARK = "x-spark-tracking-ui"
_TRIED = 50
_PATIENCE = 300.0


@click.command()
@click.argument("lake")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="If not given and in use, the next free one.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
def ui(lake: str, host: str, port: int, open_browser: bool) -> None:
    """Serve MLflow's web UI on a lake and print the link that shows its runs; Ctrl-C ends it.

    LAKE is a folder, or any URI that names a lake. Needs the full mlflow: pip install 'spark-tracking[server]'.

    \b
    Examples:
      spark-tracking ui ./demo-lake --open
      spark-tracking ui delta+s3://bucket/lake --port 8080
    """
    require("The web UI", "flask")
    from spark_tracking.lake.root_folder import ensure

    uri = LakeUri.parse(lake)
    ensure(uri, create=False)
    said = click.get_current_context().get_parameter_source("port") is ParameterSource.COMMANDLINE
    url = f"http://{host}:{_free_port(host, port, said)}"
    signal.signal(signal.SIGTERM, _end)
    mark = uuid.uuid4().hex
    server = _start(uri, url, mark)
    try:
        _wait_until_healthy(url, server, mark)
        click.echo(f"The runs of {uri}: {url}/{_RUNS}   (Ctrl-C ends it)")
        if open_browser:
            click.launch(f"{url}/{_RUNS}")
        server.wait()
        raise click.ClickException(f"The server has ended by itself, with exit code {server.returncode}.")
    except KeyboardInterrupt:
        click.echo("Ended.", err=True)
    finally:
        _stop(server)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _free_port(host: str, port: int, said: bool) -> int:
    """The port, or the next one that nobody listens on unless it was `said`."""
    for one in [port] if said else range(port, min(port + _TRIED, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, one))
            except OSError as error:
                reason = error.strerror
                continue
        if one != port:
            click.echo(f"Port {port} is in use; {one} it is.", err=True)
        return one
    raise click.UsageError(f"Port {port} of {host} cannot be had ({reason}). Name another one with --port, or end what listens there.")


def _start(uri: LakeUri, url: str, mark: str) -> subprocess.Popen[bytes]:
    host, port = url.removeprefix("http://").rsplit(":", 1)
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", port, "--workers", "1"]
    command += ["--backend-store-uri", str(uri), "--no-serve-artifacts", "--default-artifact-root", uri.artifact_root]
    command += ["--uvicorn-opts", f"--log-level warning --header {_MARK}:{mark}"]
    # without job execution, five more processes that a UI on a lake has no use for
    environ = {"PYTHONWARNINGS": "ignore", **os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, start_new_session=True)


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], mark: str) -> None:
    """Wait for an answer that bears our mark: of another server that took the port at the same moment it would be another lake's."""
    deadline = time.monotonic() + _PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            if answer.headers.get(_MARK) == mark:
                return
        time.sleep(0.2)
    raise click.ClickException("The server did not start; what it said stands above.")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server with all of its processes; by force when it takes its time."""
    for number, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(patience)
            return
