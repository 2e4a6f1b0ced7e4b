"""Sync again and again, for as long as a program or a service runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from spark_tracking.errors import Unavailable
from spark_tracking.mirror.result import SyncResult
from spark_tracking.mirror.run import sync


def follow(source: str, target: str, every: float = 60.0, **options: Any) -> Iterator[SyncResult]:
    """Sync again and again, one result each time, with `every` seconds between two beginnings; for as long as it is iterated.

    A source that cannot be reached for a while is asked again the next time. Options as for `sync`.

    Example:
        >>> for result in follow("http://mlflow:5000", "delta:///shared/lake", every=300):
        ...     print(result.points)
    """
    while True:
        begin = time.monotonic()
        try:
            yield sync(source, target, **options)
        except Unavailable as error:
            missed = SyncResult(source, target)
            missed.fail("experiment", "*", error)
            yield missed
        time.sleep(max(0.0, every - (time.monotonic() - begin)))
