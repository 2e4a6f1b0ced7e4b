"""This package on a Spark Connect server that does not have it: sent once a session, as a zip beside the session's other files."""

from __future__ import annotations

import tempfile
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

import spark_tracking

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NEEDED = ("mlflow", "pyarrow", "deltalake", "datafusion", "msgpack", "orjson")
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
        from spark_tracking.errors import InvalidState

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

    row = spark.range(1).select(udf(look, "string")("id")).first()
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
