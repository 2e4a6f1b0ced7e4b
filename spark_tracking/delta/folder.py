"""A folder of a POSIX file system."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from spark_tracking.delta.faults import explained

WAIT_SECONDS = 30.0
SET_ASIDE = "_set_aside"
"""The folder of what was damaged: kept for a person to judge, and read by nobody."""
_LOCK = "_journal/flush.lock"


class File(NamedTuple):
    """A file of a folder; `modified` is in seconds since the epoch, `size` in bytes."""

    name: str
    modified: float
    size: int


class Folder:
    """A root on a file system. Paths are relative to it, with slashes.

    Attributes:
        root: as Delta engines take it.
        is_local: whether it is a folder, where what others wrote has to be made durable.
        patience: seconds for which a reader may put off looking for newer tables, where looking costs calls.
    """

    is_local = True
    patience = 0.0

    def __init__(self, root: str) -> None:
        self.root = root
        self._prefix = root.rstrip("/") + "/"
        self._leading = threading.Lock()

    @contextmanager
    def leadership(self, wait: bool) -> Iterator[bool]:
        """Be the one process that flushes; yields whether it was got. Correctness never depends on it.

        A lock that the kernel frees when the process dies. With `wait`, another process is passed by after a while: the loser's
        commit conflicts. A thread of this one never is, as they share handles.
        """
        if not self._leading.acquire(blocking=wait):
            yield False
            return
        try:
            try:
                fd = os.open(self._prefix + _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise explained(error, self.root) from error
            try:
                yield _lock(fd, wait)
            finally:
                os.close(fd)
        finally:
            self._leading.release()

    def prepare(self, folders: Iterable[str]) -> None:
        """Make the root and folders in it, where folders have to be made."""
        for folder in ("", *folders):
            os.makedirs(self._prefix + folder, exist_ok=True)

    def names(self) -> list[str]:
        """What lies directly in the root."""
        try:
            return os.listdir(self.root)
        except FileNotFoundError:
            return []

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return os.path.exists(self._prefix + path)

    def read(self, path: str) -> bytes:
        """The content of a file, or FileNotFoundError."""
        return Path(self._prefix + path).read_bytes()

    def fetch(self, paths: Sequence[str]) -> list[pa.Buffer]:
        """The contents of files that never change, in Arrow's own memory, or FileNotFoundError."""
        return [pa.OSFile(self._prefix + path).read_buffer() for path in paths]

    def create(self, path: str, data: bytes) -> bool:
        """Make a file, whole or not at all; False when it is there already."""
        target = Path(self._prefix + path)
        draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        draft.write_bytes(data)
        try:
            os.link(draft, target)
            return True
        except FileExistsError:
            return False
        finally:
            draft.unlink()

    def note(self, path: str, data: bytes) -> None:
        """Put a file in place of what is there; a crash may leave a torn one."""
        Path(self._prefix + path).write_bytes(data)

    def set_aside(self, path: str) -> str:
        """Move a file to where nothing of a lake looks, until a person removes it; returns where to."""
        target = f"{SET_ASIDE}/{time.time_ns()}-{path.replace('/', '-')}"
        self.prepare([SET_ASIDE])
        os.rename(self._prefix + path, self._prefix + target)
        fsync_folder(Path(self._prefix + SET_ASIDE))
        return target

    def remove_folder(self, parent: str, own: str) -> None:
        """Remove the folder `parent/own` with all in it; none is no error. A link on the way down `own` is unlinked, never followed.

        Raises:
            OSError, LakeError: it could not be removed, or `parent` leads through a link.
        """
        place = os.path.realpath(self.root)
        for name in parent.split("/") if parent else ():
            place = os.path.join(place, name)
            if os.path.islink(place):
                raise OSError(f"'{place}' is a link, and links are not followed")
        for name in own.split("/"):
            place = os.path.join(place, name)
            if os.path.islink(place) or os.path.isfile(place):
                os.unlink(place)
                return
        with suppress(FileNotFoundError):
            shutil.rmtree(place)
        with suppress(OSError):  # where nothing else lies beside it
            os.rmdir(os.path.dirname(place))

    def files(self, folder: str) -> Iterator[File]:
        """The files directly in a folder."""
        for entry in os.scandir(self._prefix + folder):
            try:
                if entry.is_file():
                    at = entry.stat()
                    yield File(entry.name, at.st_mtime, at.st_size)
            except FileNotFoundError:
                continue  # vacuumed, or cleaned from a log, meanwhile

    def folders(self, folder: str) -> list[str]:
        """The names of the folders in a folder."""
        try:
            return sorted(entry.name for entry in os.scandir(self._prefix + folder) if entry.is_dir())
        except FileNotFoundError:
            return []

    def remove(self, paths: Iterable[str]) -> None:
        """Delete files, and folders (which end in a slash) with what is in them; none is no error, and links are not followed."""
        for path in (self._prefix + path.rstrip("/") for path in paths):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                Path(path).unlink(missing_ok=True)

    def is_newest(self, log: str, version: int) -> bool:
        """Whether a Delta log has this version and none after it. A log is cleaned from its old end, but of its newest version."""
        path = f"{self._prefix}{log}/{version:020d}.json"
        return not os.path.exists(f"{self._prefix}{log}/{version + 1:020d}.json") and os.path.exists(path)

    def make_durable(self, paths: Iterable[str], folders: Iterable[str]) -> None:
        """See to it that files written by others, and their names, survive a power loss."""
        for path in paths:
            _fsync(self._prefix + path)
        for folder in folders:
            fsync_folder(Path(self._prefix + folder))


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _lock(fd: int, wait: bool) -> bool:
    """Whether the lock was got. A leader that was stopped is passed by after a while, as nothing depends on the lock."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not wait:
                return False
            if time.monotonic() > deadline:
                return True
            time.sleep(0.005)


def _fsync(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return  # compacted and vacuumed meanwhile: another file holds its rows
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
