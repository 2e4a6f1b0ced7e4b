"""A model on a node: one unpacked copy, loaded at most once per worker process, with big arrays that all its workers share.

The cache is this module's: `sys.modules` lives as long as the process, while the globals of a function that was pickled by value do
not survive a task. An sklearn estimator is pickled whole, arrays inside: the first worker of a node to load a big one writes it once
more in joblib's form, which keeps arrays apart, and all map those copy-on-write: they share what they read, and may still write.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import PicklingError
from typing import Any

from spark_tracking.errors import InvalidState
from spark_tracking.spark.worker import settle

_KEPT_MODELS = 8  # per process; more than any one query uses, few enough for a long-lived worker
_KEPT_DAYS = 7.0  # a node's copies that nothing loaded for so long make room
_BIG = 32 << 20  # bytes of model files from which sharing is worth a second write

_models: OrderedDict[tuple[str, str], Any] = OrderedDict()
_lock = threading.Lock()

_SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
"""Members that would leave the folder are refused, by Pythons that know how (3.10.12, 3.11.4 and newer); the archive is ours."""


@dataclass(frozen=True)
class ModelCopy:
    """Where workers find a model: in a folder that all of them see, or in an archive that Spark ships to every node.

    Attributes:
        digest: digest of the model's content, the key of every cache.
        folder, archive: the shared folder, or the archive's name among Spark's files; the other is None.
        label, requirements: for the message of a failed load.
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
            model = _loaded(folder, copy)
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
    with _locked(home / f"{copy.digest}.lock"):
        if not target.is_dir():
            _drop_unused(home)
            with _whole(target) as partial, tarfile.open(SparkFiles.get(copy.archive)) as archive:
                archive.extractall(partial, **_SAFELY)
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


def _drop_unused(home: Path) -> None:
    """Copies that were not loaded for days, and the rest of workers that died while unpacking. Mapped files stay readable."""
    for folder in home.iterdir():
        days = _KEPT_DAYS if "." not in folder.name else 0.1
        if folder.is_dir() and folder.stat().st_mtime < time.time() - days * 86_400:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file among this node's processes; a process that dies lets go of it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which then appears as a whole or not at all; to be held under a lock."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _loaded(folder: Path, copy: ModelCopy) -> Any:
    from mlflow.models import Model
    from mlflow.pyfunc import FLAVOR_NAME, MAIN, PyFuncModel, load_model

    def whole() -> Any:
        return load_model(str(folder), suppress_warnings=True, model_config=dict(copy.config) or None)

    metadata = Model.load(str(folder))
    main = metadata.flavors.get(FLAVOR_NAME, {})
    plain = main.get(MAIN) == "mlflow.sklearn" and main.get("predict_fn", "predict") == "predict" and not copy.config
    if not plain or sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < _BIG:
        return whole()
    estimator = _mapped(copy, whole)
    return estimator if isinstance(estimator, PyFuncModel) else PyFuncModel(model_meta=metadata, model_impl=_Estimator(estimator))


def _mapped(copy: ModelCopy, whole: Callable[[], Any]) -> Any:
    """The estimator with its arrays mapped, or the whole model where it cannot be written so."""
    import joblib  # type: ignore[import-untyped]  # comes with scikit-learn

    apart = node_folder() / f"{copy.digest}-mapped"
    with _locked(apart.with_suffix(".lock")):
        if not apart.exists():
            model = whole()
            try:
                with _whole(apart) as partial:
                    joblib.dump(model.get_raw_model(), partial / "estimator")
            except (PicklingError, AttributeError, TypeError):  # of a class or function that only cloudpickle takes, as a notebook's
                return model
    # Ours: written above from a model that the caller asked to load, in a folder that only this user can write.
    return joblib.load(apart / "estimator", mmap_mode="c")


class _Estimator:
    """What `mlflow.sklearn` wraps an estimator in, for one that is mapped."""

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        return self._estimator.predict(data)

    def get_raw_model(self) -> Any:
        return self._estimator
