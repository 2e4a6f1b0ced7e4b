"""A lake in a folder of a POSIX file system."""

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

import pyarrow as pa

from spark_tracking.lake.faults import explained
from spark_tracking.lake.journal import Journal, fsync_folder
from spark_tracking.lake.storage import SET_ASIDE, File

WAIT_SECONDS = 30.0


class FileStorage:
    """See `lake.storage.Storage`."""

    patience = 0.0
    syncs = True
    is_local = True

    def __init__(self, root: str) -> None:
        self.root = root
        self._prefix = root.rstrip("/") + "/"
        self._leading = threading.Lock()

    def journal(self, sync: bool = True) -> Journal:
        return Journal(Path(self.root), sync)

    @contextmanager
    def leadership(self, wait: bool) -> Iterator[bool]:
        """A lock that the kernel frees when the process dies.

        Another process is passed by after a while: the loser's commit conflicts. A thread of this one never, as they share handles.
        """
        if not self._leading.acquire(blocking=wait):
            yield False
            return
        try:
            try:
                fd = os.open(self._prefix + "_journal/flush.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise explained(error, self.root) from error
            try:
                yield _lock(fd, wait)
            finally:
                os.close(fd)
        finally:
            self._leading.release()

    def prepare(self, folders: Iterable[str]) -> None:
        for folder in ("", *folders):
            os.makedirs(self._prefix + folder, exist_ok=True)

    def names(self) -> list[str]:
        try:
            return os.listdir(self.root)
        except FileNotFoundError:
            return []

    def exists(self, path: str) -> bool:
        return os.path.exists(self._prefix + path)

    def read(self, path: str) -> bytes:
        return Path(self._prefix + path).read_bytes()

    def fetch(self, paths: Sequence[str]) -> list[pa.Buffer]:
        return [pa.OSFile(self._prefix + path).read_buffer() for path in paths]

    def create(self, path: str, data: bytes) -> bool:
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
        Path(self._prefix + path).write_bytes(data)

    def set_aside(self, path: str) -> str:
        target = f"{SET_ASIDE}/{time.time_ns()}-{path.replace('/', '-')}"
        self.prepare([SET_ASIDE])
        os.rename(self._prefix + path, self._prefix + target)
        fsync_folder(Path(self._prefix + SET_ASIDE))
        return target

    def remove_folder(self, parent: str, own: str) -> None:
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
        for entry in os.scandir(self._prefix + folder):
            try:
                if entry.is_file():
                    at = entry.stat()
                    yield File(entry.name, at.st_mtime, at.st_size)
            except FileNotFoundError:
                continue  # vacuumed, or cleaned from a log, meanwhile

    def folders(self, folder: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self._prefix + folder) if entry.is_dir())
        except FileNotFoundError:
            return []

    def remove(self, paths: Iterable[str]) -> None:
        for path in (self._prefix + path.rstrip("/") for path in paths):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                Path(path).unlink(missing_ok=True)

    def is_newest(self, log: str, version: int) -> bool:
        path = f"{self._prefix}{log}/{version:020d}.json"
        return not os.path.exists(f"{self._prefix}{log}/{version + 1:020d}.json") and os.path.exists(path)

    def make_durable(self, paths: Iterable[str], folders: Iterable[str]) -> None:
        for path in paths:
            _fsync(self._prefix + path)
        for folder in folders:
            fsync_folder(Path(self._prefix + folder))


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
