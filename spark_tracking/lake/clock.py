"""The hybrid logical clock that orders every change in a lake.

A stamp is one int64: milliseconds since the epoch in the upper bits, a counter in the lower 16. It never goes back and is
never behind anything that its process has seen, so a change made after reading another one is later than it, whatever the
wall clocks of the two machines say (Kulkarni et al., "Logical Physical Clocks", 2014).
"""

from __future__ import annotations

import time

from spark_tracking.kinds.state import COUNTER_BITS


class Clock:
    """A process's clock; the caller serialises access.

    Example:
        >>> clock = Clock()
        >>> clock.observe(2**62)
        >>> clock.tick() > 2**62
        True
    """

    def __init__(self) -> None:
        self._last = 0

    def tick(self) -> int:
        """A stamp later than every one ticked or observed before."""
        self._last = max(time.time_ns() // 1_000_000 << COUNTER_BITS, self._last + 1)
        return self._last

    def observe(self, hlc: int) -> None:
        """Never fall behind `hlc`."""
        if hlc > self._last:
            self._last = hlc


def from_milliseconds(ms: int) -> int:
    """The first stamp of a millisecond."""
    return ms << COUNTER_BITS
