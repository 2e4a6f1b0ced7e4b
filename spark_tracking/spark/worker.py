"""This process as one of Spark's own: a Python worker, which Spark keeps for further tasks, or the planner of a source."""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spark_tracking.errors import SparkTrackingError

_modules = 0


def settle(loaded: bool = False) -> None:
    """Take what this worker holds for good out of the garbage collector's sight. To be called at the end of a task.

    After each task Spark's daemon has Python collect garbage. With pandas, MLflow and a model in memory that takes 30 to 80 ms,
    more than many a task. Modules and models stay until the process ends, so that nothing is gained by looking at them.
    Only something when modules came since the last time, or a model is `loaded`, and never in a user's own process.
    """
    global _modules
    if (loaded or len(sys.modules) != _modules) and _program().endswith("daemon"):
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
        if _program().startswith("pyspark."):
            os.environ["SPARK_HIDE_TRACEBACK"] = "1"
        raise


def jvm() -> tuple[str, int] | None:
    """The JVM that started this process, or the daemon that did: machine and process id. None where Linux does not tell."""
    process = os.getppid()
    for _ in range(2):
        try:
            name, _, rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")
        except OSError:
            return None
        if name.endswith("(java"):
            return socket.gethostname(), process
        process = int(rest.split()[1])
    return None


def _program() -> str:
    """The module that this process runs by `python -m`, if one."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else ""
