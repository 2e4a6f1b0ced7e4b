"""One rate of requests to a server for all processes of a machine, without anybody between them."""

from __future__ import annotations

import os
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

LONGEST_WAIT = 600.0
_TIMES = struct.Struct("dd")
_threads = threading.Lock()
_without_file: dict[Path, tuple[float, float]] = {}


class RateLimit:
    """At most so many requests a second, and none before a server's `Retry-After` is over.

    When the next may go stands in a small file of the temporary folder, changed under a lock: a Spark task is a process.
    `time.monotonic` is one clock for them all. Where the file cannot be had, the limit is this process's.
    """

    def __init__(self, server: str) -> None:
        user = os.getuid() if hasattr(os, "getuid") else 0
        digest = sha256(server.encode()).hexdigest()[:16]  # the URI may hold a password
        self._path = Path(tempfile.gettempdir()) / f"spark-tracking-rate-{user}-{digest}"

    def wait(self, per_second: float | None) -> None:
        """Sleep until it is the caller's turn, and no other's before its share of the second is over."""
        gap, now = 1 / per_second if per_second else 0.0, time.monotonic()
        free, paused = self._update(lambda free, paused: (max(now, free, paused) + gap if gap else free, paused))
        turn = max(now, free, paused) if gap else max(now, paused)
        time.sleep(max(0.0, turn - time.monotonic()))
        if self._update(lambda *times: times)[1] > turn:
            self.wait(per_second)  # somebody was told to wait for longer meanwhile

    def pause(self, seconds: float) -> None:
        """No request of anybody for so long."""
        until = time.monotonic() + min(seconds, LONGEST_WAIT)
        self._update(lambda free, paused: (free, max(paused, until)))

    def _update(self, change: Callable[[float, float], tuple[float, float]]) -> tuple[float, float]:
        """Change when the next turn is free and until when there is a pause; both as they were."""
        with _threads:
            try:
                return self._update_file(change)
            except (OSError, ImportError):  # no right to write there, or no flock on this system
                times = _without_file.get(self._path, (0.0, 0.0))
                _without_file[self._path] = change(*times)
                return times

    def _update_file(self, change: Callable[[float, float], tuple[float, float]]) -> tuple[float, float]:
        import fcntl

        with open(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            stored = file.read(_TIMES.size)
            free, paused = _TIMES.unpack(stored) if len(stored) == _TIMES.size else (0.0, 0.0)
            if not max(free, paused) <= time.monotonic() + 2 * LONGEST_WAIT:
                free = paused = 0.0  # of before the machine was started
            file.seek(0)
            file.write(_TIMES.pack(*change(free, paused)))
            return free, paused
