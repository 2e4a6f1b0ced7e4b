"""What the user's process says to the sources in Spark's, and the file that carries it where a session keeps the sources it found."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from spark_tracking.spark.session import is_connect

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_NOTE = "spark-tracking-use-"


@dataclass(frozen=True)
class Defaults:
    """What `spark_tracking.use` carries from the user's process into Spark's, credentials included; whether it was called at all."""

    tracking_uri: str | None = field(default=None, repr=False)
    experiment_ids: tuple[str, ...] | None = None
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    used: bool = False


def send_defaults(session: SparkSession, defaults: Defaults) -> None:
    """Tell the session's sources by a file, where they cannot be replaced: Spark 4.0 keeps those that it found by itself."""
    name = f"{_NOTE}{time.time_ns()}.json"  # a session takes a name only once
    if not is_connect(session):
        from pyspark.core.files import SparkFiles

        _write(Path(SparkFiles.getRootDirectory()) / name, defaults)  # the planner is a process of this machine; tasks need no copy
        return
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder) / name, defaults)
        session.addArtifacts(str(Path(folder) / name), file=True)


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
