"""Lakes to write to, and second handles on them that stand for other processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from spark_tracking.address import LakeUri
from spark_tracking.lake import Lake


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is flushed in the background, unless a test says so: what is tested happens when it says."""
    monkeypatch.setenv("SPARK_TRACKING_FLUSH_SECONDS", "3600")


@pytest.fixture
def another(lake_uri: str) -> Iterator[Callable[[], Lake]]:
    """Opens the lake once more, as another process would: its own clock, journal segment, view and table handles."""
    opened: list[Lake] = []

    def open_another() -> Lake:
        opened.append(Lake(LakeUri.parse(lake_uri)))
        return opened[-1]

    yield open_another
    for lake in opened:
        lake.close()


@pytest.fixture
def lake(lake_uri: str) -> Iterator[Lake]:
    """An empty lake of this process."""
    lake = Lake.open(lake_uri, create=True)
    yield lake
    lake.close()
    Lake._open.pop(lake.uri.root, None)
