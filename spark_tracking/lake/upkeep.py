"""Journals -> logs -> derived tables: what a process does of it, at once when it is asked to, else in a thread while it works."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import cached_property

from spark_tracking import config
from spark_tracking.delta.storage import Storage
from spark_tracking.lake.flush import Flusher
from spark_tracking.lake.journal import ROLL_BYTES
from spark_tracking.lake.journals import AnyJournal, journal_of
from spark_tracking.lake.maintain import KEEP
from spark_tracking.lake.refresh import Refresher

_log = logging.getLogger(__name__)
REFRESH_SECONDS = 4.0
"""How often a long-lived writer refreshes the derived tables while nothing asks for it."""
JOIN_SECONDS = 120.0


class Upkeep:
    """A process's part in it. One process at a time works; correctness never depends on which, or on there being only one.

    Attributes:
        background: the thread, from the first write on until `close`.

    Args:
        lock: serialises appends to the process's own journal.
        vacuum: removes files that went out of use long ago; called now and then.
    """

    def __init__(self, files: Storage, journal: AnyJournal, lock: threading.RLock, vacuum: Callable[[], object]) -> None:
        self._files, self._journal, self._lock, self._vacuum = files, journal, lock, vacuum
        self.background: Background | None = None
        self._flushed, self._flush_bytes = 0, config.FLUSH_BYTES.get()
        self._vacuumed = time.monotonic()

    @cached_property
    def flusher(self) -> Flusher:
        """With handles of its own."""
        return Flusher(self._files.root, journal_of(self._files))

    @cached_property
    def refresher(self) -> Refresher:
        """On the flusher's handles."""
        return Refresher(self._files.root, self.flusher.events, self.flusher.metrics)

    def forget_handles(self) -> None:
        """After an error of Delta's, or a rebuild: handles on tables as they were are of no use."""
        self.__dict__.pop("flusher", None)
        self.__dict__.pop("refresher", None)

    def settle(self, unless: Callable[[], bool] | None = None) -> int:
        """Flush and refresh, now; returns how many rows changed. `unless`: whether another who had the lock before has done it."""
        with self._files.leadership(wait=True):
            if unless is not None and unless():
                return 0
            self._flush()
            return self.refresher.refresh()

    def flush(self) -> None:
        """Journals -> logs, now."""
        with self._files.leadership(wait=True):
            self._flush()

    def written(self, position: int) -> None:
        """The own segment has grown to there: it is flushed soon, and at once when there is much of it."""
        background = self.background or self.in_background()
        if position - self._flushed > self._flush_bytes:
            background.wake()

    def in_background(self) -> Background:
        """The thread, started with the first call."""
        with self._lock:
            if self.background is None:
                self.background = Background(self._files, self._flush, self._refresh, config.FLUSH_SECONDS.get())
                self.background.start()
            return self.background

    def close(self) -> None:
        """End the thread, let go of the own segment and settle it."""
        background, self.background = self.background, None
        if background is None:
            return
        background.stop()
        with self._lock:
            own = self._journal.own.name
            self._journal.own.close()
        with self._files.leadership(wait=True):
            self.flusher.flush(own)
            self.refresher.refresh()

    def _flush(self) -> bool:
        self.refresher.require_whole_logs()
        moved = self.flusher.flush()
        with self._lock:
            if self._journal.own.position > ROLL_BYTES:
                self._journal.own.close()
            self._flushed = self._journal.own.position
        return moved

    def _refresh(self) -> None:
        self.refresher.refresh()
        if time.monotonic() - self._vacuumed > KEEP.total_seconds() / 3:
            self._vacuumed = time.monotonic()
            self._vacuum()


class Background(threading.Thread):
    """Flushes every few seconds, refreshes less often, both at once when something urgent (a run's end) asks for it.

    Args:
        flush: journal -> logs; returns whether there was anything.
        refresh: logs -> derived tables.
    """

    def __init__(self, files: Storage, flush: Callable[[], bool], refresh: Callable[[], object], seconds: float) -> None:
        super().__init__(name="spark-tracking-flush", daemon=True)
        self._files, self._flush, self._refresh, self._seconds = files, flush, refresh, seconds
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
            due = time.monotonic() - self._refreshed > REFRESH_SECONDS
            if urgent or (due and self._unrefreshed):
                self._refresh()
                self._refreshed, self._unrefreshed = time.monotonic(), False
