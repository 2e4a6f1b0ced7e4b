"""This process as one of Spark's Python workers, which Spark keeps for further tasks."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from spark_tracking.errors import SparkTrackingError

_modules = 0


def settle(loaded: bool = False) -> None:
    """Take what this worker holds for good out of the garbage collector's sight. To be called at the end of a task.

    After each task Spark's daemon has Python collect garbage. With pandas, MLflow and a model in memory that takes 30 to 80 ms,
    more than many a task. Modules and models stay until the process ends, so that nothing is gained by looking at them.
    Only something when modules came since the last time, and only in a worker, never in a user's own process.

    Args:
        loaded: a model has been loaded.
    """
    global _modules
    if not loaded and len(sys.modules) == _modules:
        return
    main = getattr(sys.modules["__main__"], "__spec__", None)
    if main is not None and main.name.endswith("daemon"):
        gc.unfreeze()  # what went since the last time is found, too
        gc.collect()
        gc.freeze()
        _modules = len(sys.modules)


@contextmanager
def sentence_first() -> Iterator[None]:
    """Our errors in here reach the user without the traceback that Spark would put before them, of up to 10,000 characters.

    Spark looks at the variable when it writes the error down, and ends the worker after that: no other task's traceback is hidden.
    """
    try:
        yield
    except SparkTrackingError:
        main = getattr(sys.modules["__main__"], "__spec__", None)
        if main is not None and main.name.startswith("pyspark."):
            os.environ["SPARK_HIDE_TRACEBACK"] = "1"
        raise
