"""What a session gets as files: this package on a Spark Connect server that lacks it, and on Spark 4.0 what `use` said."""

from __future__ import annotations

import sys
import tempfile
import time
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

import orjson

import spark_tracking
from spark_tracking.errors import InvalidState
from spark_tracking.sources.options import Defaults
from spark_tracking.sources.pythons import NEEDED, python_reason

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_NOTE = "spark-tracking-use-"
_served: WeakSet[SparkSession] = WeakSet()


def ensure_package(spark: SparkSession) -> None:
    """See to it that the server's Python can import this package; its dependencies must be there.

    Raises:
        InvalidState: the server lacks packages that this one needs.
    """
    if spark in _served:
        return
    missing = _missing_on_server(spark)
    if lacking := [name for name in missing if name != "spark_tracking"]:
        raise InvalidState(
            f"The Spark Connect server's Python lacks {', '.join(lacking)}. Install this package where the server and its executors run: "
            "pip install spark-tracking"
        )
    if missing:
        with tempfile.TemporaryDirectory() as folder:
            spark.addArtifacts(str(_zipped(Path(folder))), pyfile=True)
    _served.add(spark)


def _missing_on_server(spark: SparkSession) -> list[str]:
    from pyspark.sql.functions import udf

    names = ("spark_tracking", *NEEDED)

    def look(_: int) -> str:  # pickled by value: the server may not have this module
        from importlib.util import find_spec

        return ",".join(name for name in names if find_spec(name) is None)

    try:
        row = spark.range(1).select(udf(look, "string")("id")).first()
    except Exception as error:
        if not (reason := python_reason(error)):
            raise
        raise InvalidState(
            f"The Spark Connect server's workers cannot run this process's Python: {reason}. Where the server is started, set "
            f"PYSPARK_PYTHON to a Python {sys.version_info[0]}.{sys.version_info[1]} that has this package; here {sys.executable}."
        ) from None
    return [name for name in (row[0] if row else "").split(",") if name]


def _zipped(folder: Path) -> Path:
    """The package's modules in a file that is named by what is in it, since a session takes a name only once."""
    root = Path(spark_tracking.__file__).parent
    files = {
        path.relative_to(root.parent).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.suffix in (".py", ".sh")
    }
    digest = sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]
    target = folder / f"spark_tracking-{spark_tracking.__version__}-{digest}.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target


def send_defaults(spark: SparkSession, defaults: Defaults) -> None:
    """Tell the session's sources what `use` said, where they cannot be replaced: Spark 4.0 keeps those that it found by itself."""
    name = f"{_NOTE}{time.time_ns()}.json"  # a session takes a name only once
    if "connect" not in type(spark).__module__:
        from pyspark.core.files import SparkFiles

        _write(Path(SparkFiles.getRootDirectory()) / name, defaults)  # the planner is a process of this machine; tasks need no copy
        return
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder) / name, defaults)
        spark.addArtifacts(str(Path(folder) / name), file=True)


def _write(path: Path, defaults: Defaults) -> None:
    path.touch(0o600)
    path.write_bytes(orjson.dumps(defaults))


def sent_defaults() -> Defaults | None:
    """What was sent last to the session that this planner process works for."""
    try:
        from pyspark.core.files import SparkFiles
    except ImportError:  # a client without Spark itself
        return None
    root = SparkFiles._root_directory  # set in Spark's own processes only
    notes = sorted(Path(root).glob(f"{_NOTE}*.json")) if root else []
    if not notes:
        return None
    said = orjson.loads(notes[-1].read_bytes())
    return Defaults(said["tracking_uri"], said["experiment_ids"] and tuple(said["experiment_ids"]), said["variables"], used=True)
