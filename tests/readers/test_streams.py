"""Several streams read at the same time, with a bounded number of items waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from spark_tracking.readers.streams import interleaved


def numbers(start: int, made: list[int], count: int = 5) -> Iterator[int]:
    for number in range(start, start + count):
        made.append(number)
        yield number


def test_every_item_comes_once_and_those_of_a_stream_in_order() -> None:
    got = list(interleaved((partial(numbers, start, []) for start in (0, 10, 20)), at_once=2))
    assert sorted(got) == [*range(5), *range(10, 15), *range(20, 25)]
    assert [number for number in got if number < 10] == list(range(5))


def test_no_more_is_read_than_may_wait() -> None:
    made: list[int] = []
    stream = interleaved([partial(numbers, 0, made, 1000)], at_once=1, waiting=3)
    assert next(stream) == 0
    time.sleep(0.3)
    assert len(made) <= 1 + 3 + 1  # taken, waiting, and the one that nobody has room for


def test_a_failure_reaches_the_reader() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("cut")

    with pytest.raises(OSError, match="cut"):
        list(interleaved([broken, partial(numbers, 0, [])], at_once=2))


def test_threads_end_with_a_reader_that_stops_early() -> None:
    before = threading.active_count()
    stream = interleaved((partial(numbers, start, [], 1000) for start in range(10)), at_once=3)
    next(stream)
    stream.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before  # others of earlier tests may have ended meanwhile
