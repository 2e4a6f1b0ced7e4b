"""Waiting, but not for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")


def in_time(work: Callable[[], T], seconds: float) -> T:
    """What `work` returns.

    Raises:
        TimeoutError: it takes longer. Its thread goes on and does not keep the process from ending.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    done, _ = wait([future], seconds)
    if not done:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return future.result()
