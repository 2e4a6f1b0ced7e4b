"""Which Python Spark's workers run: where nobody said, the system's, which need not be this process's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from spark_tracking.errors import InvalidState
from spark_tracking.masking import masked

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NEEDED = ("mlflow", "pyarrow", "deltalake", "datafusion", "msgpack", "orjson")
_ASK = """
import sys
from importlib.util import find_spec
print("%d.%d" % sys.version_info[:2], *(name for name in sys.argv[1:] if find_spec(name) is None))
"""
_HERE = "{}.{}".format(*sys.version_info)
ADVICE = (
    f"Set PYSPARK_PYTHON before Spark starts, in Python by os.environ['PYSPARK_PYTHON'] = sys.executable (here {sys.executable}), or let "
    "spark_tracking.local_spark() start it."
)


def check_workers(session: SparkSession) -> None:
    """See that a classic session's workers run a Python that has this package; InvalidState where the sources would fail at `load()`."""
    if problem := worker_problem(session):
        raise InvalidState(f"{problem} {ADVICE}")


def worker_problem(session: SparkSession) -> str:
    """What is wrong with the Python that a classic session starts as planner and workers, in a sentence; '' where nothing is."""
    context = getattr(session, "_sc", None)
    if context is None or "DATABRICKS_RUNTIME_VERSION" in os.environ:
        return ""
    python = str(context.pythonExec)
    path = shutil.which(python)
    if path and os.path.dirname(os.path.abspath(path)) == os.path.dirname(os.path.abspath(sys.executable)):
        return ""
    names = ([] if context._python_includes else ["spark_tracking"]) + list(NEEDED)  # sent files may hold the package
    try:
        told = subprocess.run([python, "-c", _ASK, *names], capture_output=True, text=True, timeout=60, check=True, cwd="/").stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        return f"Spark's workers run '{python}', which does not run here ({error})."
    if told[0] != _HERE:
        return f"Spark's workers run '{path}', which is Python {told[0]}, and this process is Python {_HERE}."
    return f"Spark's workers run '{path}', which lacks {', '.join(told[1:])}; this process runs {sys.executable}." if told[1:] else ""


def python_reason(error: Exception) -> str:
    """The line of an error of Spark that says that a worker's Python is not like this one; '' if it says something else."""
    found = re.search(r"[^\n]*(?:No module named|PYTHON_VERSION_MISMATCH|PACKAGE_NOT_INSTALLED|Cannot run program)[^\n]*", str(error))
    return masked(found[0].strip()[:300]) if found else ""
