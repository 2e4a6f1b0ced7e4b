"""Emulators for the session, and a fresh root in one for each test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from spark_tracking.address import LakeUri
from spark_tracking.lake import Lake
from tests.lake.object_store.emulators import Emulator, azurite, start_azurite, start_s3


@pytest.fixture(scope="session")
def s3() -> Iterator[Emulator]:
    emulator = start_s3()
    yield emulator
    emulator.stop()


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    if azurite() is None:
        # CI installs it, so there its absence is a fault
        assert not os.environ.get("CI"), "Azurite is not installed; `make` does it where npm is"
        pytest.skip("Azurite is not installed (make does it where there is npm)")
    emulator = start_azurite(tmp_path_factory.mktemp("azurite"))
    yield emulator
    emulator.stop()


@pytest.fixture(params=["s3", "azure"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """An emulator that this process and those that it starts find in the environment."""
    emulator: Emulator = request.getfixturevalue(request.param)
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    return emulator


@pytest.fixture
def cloud_uri(store: Emulator) -> str:
    """The tracking URI of a lake that does not exist yet."""
    return f"delta+{store.base}/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def cloud_lake(cloud_uri: str) -> Iterator[Lake]:
    """An empty lake on the emulator, of this process."""
    lake = Lake.open(cloud_uri, create=True)
    yield lake
    lake.close()
    Lake._open.pop(lake.uri.root, None)


@pytest.fixture
def another_on(cloud_uri: str) -> Iterator[object]:
    """Opens the lake once more, as another process would: its own clock, journal segment, view and table handles."""
    opened: list[Lake] = []

    def open_another() -> Lake:
        opened.append(Lake(LakeUri.parse(cloud_uri)))
        return opened[-1]

    yield open_another
    for lake in opened:
        lake.close()
