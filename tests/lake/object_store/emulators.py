"""Object stores on loopback: moto's S3, and Azurite."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.store import from_url

from tests.servers import free_port

BUCKET = "lakes"
ACCOUNT = "devstoreaccount1"
# Azurite's only account and its key, which are public: https://github.com/Azure/Azurite#default-storage-account
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass
class Emulator:
    """A running store.

    Attributes:
        base: the URL of a bucket or container in it, to which a folder is appended.
        environment: what clients need to find it.
    """

    base: str
    port: int
    environment: dict[str, str]
    process: subprocess.Popen[bytes]

    def requests(self) -> list[str]:
        """What was asked since the last call; moto's only."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_requests") as answer:
            return list(json.load(answer))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def start_s3(delay_ms: float = 0.0) -> Emulator:
    """moto's server with one bucket."""
    port = free_port()
    process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("s3_server.py")), str(port), str(delay_ms)])
    url = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",  # boto3's name for it
        "MLFLOW_S3_ENDPOINT_URL": url,
    }
    wait_for(port, process)
    urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"))
    return Emulator(f"s3://{BUCKET}", port, environment, process)


def azurite() -> str | None:
    """Azurite's blob server: beside this Python, where `make` puts it, or anywhere on the path."""
    for folder in (Path(sys.prefix) / "azurite" / "node_modules" / ".bin", None):
        found = shutil.which("azurite-blob", path=str(folder) if folder else None)
        if found:
            return found
    return None


def start_azurite(folder: Path) -> Emulator:
    """Azurite with one container."""
    port = free_port()
    command = [str(azurite()), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"]
    command += ["--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    process = subprocess.Popen(command, cwd=folder)
    url = f"http://127.0.0.1:{port}"
    connection = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};BlobEndpoint={url}/{ACCOUNT};"
    environment = {
        "AZURE_STORAGE_USE_EMULATOR": "true",
        "AZURITE_BLOB_STORAGE_URL": url,
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
        "AZURE_STORAGE_CONNECTION_STRING": connection,
    }
    wait_for(port, process)
    make_container(connection)
    return Emulator(f"abfss://{BUCKET}@{ACCOUNT}.dfs.core.windows.net", port, environment, process)


def make_container(connection: str) -> None:
    from azure.storage.blob import BlobServiceClient

    BlobServiceClient.from_connection_string(connection).create_container(BUCKET)


def wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, f"the emulator ended with {process.returncode}"
            assert time.monotonic() < end, f"no emulator at port {port} after {seconds} s"
            time.sleep(0.05)


def objects(root: str) -> list[str]:
    """The names of all objects below a root, by the store's own client."""
    return [meta["path"] for chunk in obstore.list(from_url(root)) for meta in chunk]
