"""The sync job, for schedulers: plain arguments in, a result out. The work is `spark_tracking.sync`'s."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from spark_tracking.callable_module import make_callable
from spark_tracking.errors import Unavailable
from spark_tracking.mirror import SyncResult
from spark_tracking.mirror import sync as sync_once


def sync(source: str, target: str, **options: Any) -> SyncResult:
    """Bring a tracking server's runs and models into a lake or a server, once; see `spark_tracking.mirror.sync` for the options.

    Example:
        >>> sync("http://mlflow:5000", "delta:///shared/lake", artifacts="copy").ok
        True
    """
    return sync_once(source, target, **options)


def follow(source: str, target: str, every: float = 60.0, **options: Any) -> Iterator[SyncResult]:
    """Sync again and again, one result each time, with `every` seconds between two beginnings; for as long as it is iterated.

    A source that cannot be reached for a while is asked again the next time.

    Example:
        >>> for result in follow("http://mlflow:5000", "delta:///shared/lake", every=300):
        ...     print(result.points)
    """
    while True:
        begin = time.monotonic()
        try:
            yield sync_once(source, target, **options)
        except Unavailable as error:
            missed = SyncResult(source, target)
            missed.fail("experiment", "*", error)
            yield missed
        time.sleep(max(0.0, every - (time.monotonic() - begin)))


make_callable(__name__, sync)  # as `jobs.sync(…)`
