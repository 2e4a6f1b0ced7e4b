"""Files of a run or model from one artifact root to another, by MLflow's artifact repositories; each checked before it counts as copied."""

from __future__ import annotations

import shutil
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


def copy(source: str, target: str) -> Copied:
    """Copy what `target` does not have yet, file by file.

    A file counts as there when name and size agree; where both can be read as local files, the checksum, too. A copied file is read
    back (local) or listed (elsewhere) before this returns.

    Raises:
        Unavailable: a file arrived with another size or checksum.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    theirs, ours = get_artifact_repository(source), get_artifact_repository(target)
    wanted = dict(walk(theirs))
    if not wanted:
        return Copied()
    there = dict(walk(ours))
    missing = [path for path, size in wanted.items() if not _is_there(source, target, path, size, there)]
    total = 0
    for path in missing:
        total += _copy_file(theirs, ours, target, path)
    if missing:
        arrived = dict(walk(ours))
        for path in missing:
            if wanted[path] is not None and arrived.get(path) != wanted[path]:
                raise Unavailable(
                    f"The file '{path}' of {source} has {wanted[path]} bytes and arrived with {arrived.get(path)}. Sync again."
                )
    return Copied(len(missing), total)


def _copy_file(theirs: Any, ours: Any, target: str, path: str) -> int:
    folder = Path(tempfile.mkdtemp(prefix="spark-tracking-sync-"))
    try:
        local = Path(theirs.download_artifacts(path, str(folder)))
        parent = str(Path(path).parent)
        ours.log_artifact(str(local), None if parent == "." else parent)
        copied = _local(target, path)
        if copied is not None and _checksum(copied) != _checksum(local):
            raise Unavailable(f"The file '{path}' arrived at {target} with another checksum. Is the disk full? Sync again.")
        return local.stat().st_size
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_there(source: str, target: str, path: str, size: int | None, there: dict[str, int | None]) -> bool:
    if path not in there or there[path] != size:
        return False
    one, two = _local(source, path), _local(target, path)
    return one is None or two is None or _checksum(one) == _checksum(two)


def _local(root: str, path: str) -> Path | None:
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    return Path(local_file_uri_to_path(root)) / path if is_local_uri(root) else None


def _checksum(path: Path) -> bytes:
    digest = blake2b()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()
