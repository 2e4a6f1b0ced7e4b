"""Files of a run or model from one artifact root to another, by MLflow's artifact repositories; each checked before it counts as copied."""

from __future__ import annotations

import tempfile
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from spark_tracking.errors import Unavailable
from spark_tracking.readers.artifacts import walk

_CHUNK = 1 << 20


class Copied(NamedTuple):
    """How many files were copied, and their size."""

    files: int = 0
    bytes: int = 0


def copy(source: str, target: str, verify: bool = False) -> Copied:
    """Copy what `target` does not have yet, file by file.

    A file counts as there when name and size agree; where both are local files, or with `verify`, the checksum, too. A copied file
    is read back before this returns.

    Raises:
        Unavailable: a file arrived with another size or checksum.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.utils.uri import is_local_uri

    theirs, ours = get_artifact_repository(source), get_artifact_repository(target)
    wanted = dict(walk(theirs))
    if not wanted:
        return Copied()
    there = dict(walk(ours))
    both_local = is_local_uri(source) and is_local_uri(target)
    files, total = 0, 0
    for path, size in wanted.items():
        same_size = path in there and (there[path] or 0) == (size or 0)  # a server leaves a size of 0 out
        if same_size and not verify and not both_local:
            continue
        with tempfile.TemporaryDirectory(prefix="spark-tracking-sync-") as folder:
            local = Path(theirs.download_artifacts(path, _fresh(folder)))
            if not (same_size and _checksum(local) == _checksum(_downloaded(ours, path, folder))):
                files, total = files + 1, total + local.stat().st_size
                _copy_file(local, ours, target, path, folder)
    return Copied(files, total)


def _copy_file(file: Path, ours: Any, target: str, path: str, folder: str) -> None:
    parent = str(Path(path).parent)
    ours.log_artifact(str(file), None if parent == "." else parent)
    arrived = _downloaded(ours, path, folder)
    if arrived.stat().st_size != file.stat().st_size or _checksum(arrived) != _checksum(file):
        raise Unavailable(
            f"The file '{path}' of {file.stat().st_size} bytes arrived at {target} with {arrived.stat().st_size} bytes, or "
            "another checksum. Is the disk full? Sync again."
        )


def _downloaded(repository: Any, path: str, folder: str) -> Path:
    return Path(repository.download_artifacts(path, _fresh(folder)))


def _fresh(folder: str) -> str:
    return tempfile.mkdtemp(dir=folder)


def _checksum(path: Path) -> bytes:
    digest = blake2b()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()
