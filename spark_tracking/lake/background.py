"""The thread of a writing process that moves journals into Delta while the process works."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from spark_tracking.lake.storage import Storage

_log = logging.getLogger(__name__)
JOIN_SECONDS = 120.0


class Background(threading.Thread):
    """Flushes every few seconds, refreshes less often, both at once when something urgent (a run's end) asks for it.

    Only the process that gets the lake's lock works; the others look again later.

    Args:
        flush: journal -> logs; returns whether there was anything.
        refresh: logs -> derived tables.
    """

    def __init__(
        self, files: Storage, flush: Callable[[], bool], refresh: Callable[[], object], seconds: float, refresh_seconds: float
    ) -> None:
        super().__init__(name="spark-tracking-flush", daemon=True)
        self._files = files
        self._flush, self._refresh = flush, refresh
        self._seconds, self._refresh_seconds = seconds, refresh_seconds
        self._wake = threading.Event()
        self._urgent = self._stopping = self._complained = False
        self._refreshed, self._unrefreshed = time.monotonic(), False

    def wake(self, urgent: bool = False) -> None:
        """Flush now rather than later; an urgent call has the derived tables refreshed, too."""
        self._urgent = self._urgent or urgent
        self._wake.set()

    def refresh_later(self) -> None:
        """Something went into the logs past the journals; the derived tables get it with the next refresh that is due."""
        self._unrefreshed = True

    def stop(self) -> None:
        """End the thread, after what it is doing."""
        self._stopping = True
        self._wake.set()
        if self is not threading.current_thread():
            # beyond any wait for the lock: an interpreter that ends while a thread is in Arrow's code aborts
            self.join(timeout=JOIN_SECONDS)

    def run(self) -> None:
        while not self._stopping:
            self._wake.wait(self._seconds)
            self._wake.clear()
            if self._stopping:
                return
            urgent, self._urgent = self._urgent, False
            try:
                self._work(urgent)
                self._complained = False
            except BaseException as error:  # delta-rs panics with a BaseException; nothing acknowledged is at risk
                if not self._complained:
                    _log.warning("The lake at %s could not be flushed and will be tried again: %s", self._files.root, error)
                self._complained = True

    def _work(self, urgent: bool) -> None:
        with self._files.leadership(wait=urgent) as leader:
            if not leader or self._stopping:  # who stops it settles everything himself
                return
            self._unrefreshed = self._flush() or self._unrefreshed
            due = time.monotonic() - self._refreshed > self._refresh_seconds
            if urgent or (due and self._unrefreshed):
                self._refresh()
                self._refreshed, self._unrefreshed = time.monotonic(), False
