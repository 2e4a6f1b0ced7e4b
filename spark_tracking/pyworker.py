"""This process as one of Spark's Python workers, which Spark keeps for further tasks."""

from __future__ import annotations

import gc
import sys

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
