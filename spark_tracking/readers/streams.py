"""Several streams read at the same time, with a bounded number of items waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Full, Queue
from threading import Event, Lock, Thread
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class _End(NamedTuple):
    """One thread is through; why, if it failed."""

    error: BaseException | None = None


def interleaved(streams: Iterable[Callable[[], Iterator[T]]], at_once: int, waiting: int = 1) -> Iterator[T]:
    """The items of several streams as they come, each stream's in its order.

    Args:
        streams: what starts each of them; asked for the next only when one has ended.
        at_once: how many are read at the same time, in threads.
        waiting: how many items may lie unread, however slow the reader is.

    Example:
        >>> sorted(interleaved([lambda: iter("ab"), lambda: iter("c")], at_once=2))
        ['a', 'b', 'c']
    """
    queue: Queue[T | _End] = Queue(max(1, waiting))
    stop, lock, source = Event(), Lock(), iter(streams)

    def put(item: T | _End) -> None:
        while not stop.is_set():
            with suppress(Full):
                return queue.put(item, timeout=0.1)

    def work() -> None:
        try:
            while not stop.is_set():
                with lock:
                    start = next(source, None)
                if start is None:
                    break
                for item in start():
                    put(item)
                    if stop.is_set():
                        return
            put(_End())
        except BaseException as error:  # the reader's thread raises it
            put(_End(error))

    for _ in range(at_once):
        Thread(target=work, daemon=True).start()
    running = at_once
    try:
        while running:
            item = queue.get()
            if not isinstance(item, _End):
                yield item
            elif item.error is not None:
                raise item.error
            else:
                running -= 1
    finally:
        stop.set()
