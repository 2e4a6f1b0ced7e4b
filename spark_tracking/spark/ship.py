"""This package for the workers of a session that lack it."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
import zipfile
from functools import cache, partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

import spark_tracking
from spark_tracking.errors import InvalidState
from spark_tracking.spark.ask import ask
from spark_tracking.spark.pythons import NEEDED, python_reason

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_served: WeakSet[SparkSession] = WeakSet()


def ensure_package(session: SparkSession) -> None:
    """See to it that a Connect server's Python can import this package; its dependencies must be there.

    Raises:
        InvalidState: the server lacks packages that this one needs, or cannot run this process's Python.
    """
    if session in _served:
        return
    try:
        (missing,) = ask(session, partial(_lacking, ("spark_tracking", *NEEDED)), tasks=1)
    except Exception as error:
        if not (reason := python_reason(error)):
            raise
        raise InvalidState(
            f"The Spark Connect server's workers cannot run this process's Python: {reason}. Where the server is started, set "
            f"PYSPARK_PYTHON to a Python {sys.version_info[0]}.{sys.version_info[1]} that has this package; here {sys.executable}."
        ) from None
    if lacking := [name for name in missing if name != "spark_tracking"]:
        raise InvalidState(
            f"The Spark Connect server's Python lacks {', '.join(lacking)}. Install this package where the server and its executors run: "
            "pip install spark-tracking"
        )
    if missing:
        send_package(session)
    _served.add(session)


def send_package(session: SparkSession) -> None:
    """Send this package to all workers of a session, once."""
    if session in _served:
        return
    session.addArtifacts(str(_package()), pyfile=True)
    _served.add(session)


def _lacking(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if find_spec(name) is None]


@cache
def _package() -> Path:
    """The package in a file that is named by what is in it, since a session takes a name only once; there as long as this process."""
    root = Path(spark_tracking.__file__).parent
    files = {
        path.relative_to(root.parent).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    digest = sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]
    folder = tempfile.mkdtemp(prefix="spark-tracking-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = Path(folder) / f"spark_tracking-{spark_tracking.__version__}-{digest}.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target
