"""What runs in Spark's Python workers: find the model's copy on this node, and load it at most once per process.

The cache is this module's: `sys.modules` lives as long as the worker process, while the globals of a function that was
pickled by value do not survive a task.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tarfile
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark_tracking.errors import InvalidState
from spark_tracking.spark.worker import settle

_KEPT_MODELS = 8  # per process; more than any one query uses, few enough for a long-lived worker
_KEPT_DAYS = 7.0  # a node's copies that nothing loaded for so long make room

_models: OrderedDict[tuple[str, str], Any] = OrderedDict()
_lock = threading.Lock()

_SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
"""Members that would leave the folder are refused, by Pythons that know how (3.10.12, 3.11.4 and newer); the archive is ours."""


@dataclass(frozen=True)
class ModelCopy:
    """Where workers find a model: in a folder that all of them see, or in an archive that Spark ships to every node.

    Attributes:
        digest: digest of the model's content, the key of every cache.
        folder: the shared folder, or None.
        archive: the archive's name among Spark's files, or None.
        label: how messages call the model.
        requirements: the model's pip requirements, for the message of a failed load.
        config: overrides of the model's configuration, as `mlflow.pyfunc.load_model` takes them.
    """

    digest: str
    folder: str | None
    archive: str | None
    label: str
    requirements: tuple[str, ...] = ()
    config: tuple[tuple[str, Any], ...] = ()


def load(copy: ModelCopy) -> Any:
    """The model as an `mlflow.pyfunc.PyFuncModel`, from this process's cache or else from this node's copy.

    Raises:
        InvalidState: the model cannot be loaded here; the message names the host, the cause and the requirements.
    """
    key = (copy.digest, repr(copy.config))
    with _lock:  # two threads of one process must not load it twice
        if key in _models:
            _models.move_to_end(key)
            return _models[key]
        folder = Path(copy.folder) if copy.folder else unpacked(copy)
        try:
            from spark_tracking.scoring.mapped import load_mapped

            model = load_mapped(folder, copy)
        except Exception as error:
            needs = ", ".join(copy.requirements) or "unknown"
            raise InvalidState(
                f"The model {copy.label} could not be loaded on {socket.gethostname()}: {type(error).__name__}: {error}. "
                f"It was logged with: {needs}. Install what is missing on the workers, or pass env_manager='virtualenv'."
            ) from error
        _models[key] = model
        while len(_models) > _KEPT_MODELS:
            _models.popitem(last=False)
        settle(loaded=True)
        return model


def unpacked(copy: ModelCopy) -> Path:
    """This node's one unpacked copy of a shipped archive; made by whichever worker comes first, while the others wait."""
    from pyspark import SparkFiles

    assert copy.archive is not None
    home = node_folder()
    target = home / copy.digest
    with locked(home / f"{copy.digest}.lock"):
        if not target.is_dir():
            _drop_unused(home)
            partial = home / f"{copy.digest}.{os.getpid()}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            with tarfile.open(SparkFiles.get(copy.archive)) as archive:
                archive.extractall(partial, **_SAFELY)
            partial.rename(target)
        os.utime(target)
    return target


def node_folder() -> Path:
    """Where this user's unpacked models lie on this node.

    A temporary folder's name can be guessed, and what is in it gets unpickled: so it must be ours and closed to others.
    """
    home = Path(tempfile.gettempdir()) / f"spark-tracking-models-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    state = home.lstat()
    if home.is_symlink() or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise InvalidState(f"'{home}' must be a folder that belongs to user {os.getuid()} alone (mode 700). Remove it, or set TMPDIR.")
    return home


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file among this node's processes; a process that dies lets go of it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _drop_unused(home: Path) -> None:
    """Copies that were not loaded for days, and the rest of workers that died while unpacking. Mapped files stay readable."""
    for folder in home.iterdir():
        days = _KEPT_DAYS if "." not in folder.name else 0.1
        if folder.is_dir() and folder.stat().st_mtime < time.time() - days * 86_400:
            shutil.rmtree(folder, ignore_errors=True)
