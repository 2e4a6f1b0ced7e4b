"""An object store: Amazon S3 and what speaks its protocol, Azure Data Lake Storage Gen2, Google Cloud Storage.

`obstore` wraps the same Rust library as deltalake, so both find credentials and endpoints in the same environment variables
(`AWS_*`, `AZURE_*`, `GOOGLE_*`: https://docs.rs/object_store). The store must be strongly consistent and know conditional
PUTs, as all three do; Delta commits need that, too.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from spark_tracking.delta.folder import SET_ASIDE, File
from spark_tracking.errors import InvalidSetting, LakeError, LakeReadOnly, SparkTrackingError
from spark_tracking.masking import masked

if TYPE_CHECKING:
    from obstore import ObjectMeta

FETCHES = 8
"""Files that are fetched at the same time."""
KEPT_BYTES = 128 * 1024 * 1024
"""Contents of Delta tables' files that a process keeps; they never change."""
LEASE = "flush.lease"
LEASE_SECONDS = 10.0
"""A lease that has not changed hands for so long belongs to nobody: its holder was killed."""


class ObjectStore:
    """A root on an object store, with the methods of `Folder`; what it raises is ours, but for FileNotFoundError.

    Attributes:
        kept: contents of objects that never change, for those who read them again and again; by path.
    """

    is_local = False
    patience = 2.0

    def __init__(self, root: str) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError:
            extra = root.split(":", 1)[0]
            raise InvalidSetting(
                f"The lake at '{root}' needs the package obstore. Install it: pip install 'spark-tracking[{extra}]'"
            ) from None
        self.root = root
        self._api = obstore
        with self._asking():
            self._store = from_url(root, retry_config={"max_retries": 6, "retry_timeout": timedelta(seconds=60)})
        self.kept: dict[str, bytes] = {}
        self._fetched: OrderedDict[str, pa.Buffer] = OrderedDict()
        self._fetching = threading.Lock()
        self._leading = threading.Lock()
        self._lease: tuple[str | None, float] = None, 0.0

    @contextmanager
    def leadership(self, wait: bool) -> Iterator[bool]:
        """A lease: an object that is there while somebody flushes."""
        if not self._leading.acquire(blocking=wait):
            yield False
            return
        try:
            leader = self._take_lease()
            deadline = time.monotonic() + 3 * LEASE_SECONDS
            while wait and not leader:
                time.sleep(0.1)
                leader = self._take_lease() or time.monotonic() > deadline
            try:
                yield leader
            finally:
                if leader:
                    self.delete([LEASE])
        finally:
            self._leading.release()

    def _take_lease(self) -> bool:
        if self.create(LEASE, b""):
            return True
        try:
            with self._asking():
                held = self._api.head(self._store, LEASE)
        except FileNotFoundError:
            return False
        tag = f"{held['e_tag']} {held['last_modified']}"
        if tag != self._lease[0]:
            self._lease = tag, time.monotonic()
        if time.monotonic() - self._lease[1] > LEASE_SECONDS:
            self.delete([LEASE])  # who creates it next has it
        return False

    def prepare(self, folders: Iterable[str]) -> None:
        pass

    def names(self) -> list[str]:
        found = self._list_folder("")
        return [_name(path) for path in [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]]

    def exists(self, path: str) -> bool:
        try:
            with self._asking():
                self._api.head(self._store, path)
            return True
        except FileNotFoundError:
            return False

    def read(self, path: str) -> bytes:
        with self._asking():
            return bytes(self._api.get(self._store, path).bytes())

    def fetch(self, paths: Sequence[str]) -> list[pa.Buffer]:
        with self._fetching:
            missing = [path for path in paths if path not in self._fetched]
            with ThreadPoolExecutor(FETCHES) as pool:
                self._fetched.update(zip(missing, pool.map(self._fetch, missing)))
            found = []
            for path in paths:
                self._fetched.move_to_end(path)
                found.append(self._fetched[path])
            while sum(buffer.size for buffer in self._fetched.values()) > KEPT_BYTES:
                self._fetched.popitem(last=False)
            return found

    def _fetch(self, path: str) -> pa.Buffer:
        sink = pa.BufferOutputStream()  # a copy: a buffer over Python's bytes would be let go of by Arrow's threads
        sink.write(self.read(path))
        return sink.getvalue()

    def create(self, path: str, data: bytes) -> bool:
        try:
            with self._asking():
                self._api.put(self._store, path, data, mode="create")
            return True
        except FileExistsError:
            return False

    def note(self, path: str, data: bytes) -> None:
        with self._asking():
            self._api.put(self._store, path, data)

    def set_aside(self, path: str) -> str:
        target = f"{SET_ASIDE}/{time.time_ns()}-{path.replace('/', '-')}"
        self.note(target, self.read(path))
        self.delete([path])
        return target

    def delete(self, paths: list[str]) -> None:
        """Delete objects; those that are gone already are no error."""
        if paths:
            try:
                with self._asking():
                    self._api.delete(self._store, paths)
            except FileNotFoundError:
                if len(paths) > 1:  # some stores stop at the first that is gone
                    for path in paths:
                        self.delete([path])

    def remove_folder(self, parent: str, own: str) -> None:
        paths = [meta["path"] for meta in self.objects(f"{parent}/{own}" if parent else own)]
        for start in range(0, len(paths), 1000):
            self.delete(paths[start : start + 1000])

    def objects(self, folder: str, after: str | None = None) -> Iterator[ObjectMeta]:
        """All objects below a folder in the order of their names; those behind `after`, if given."""
        with self._asking():
            for chunk in self._api.list(self._store, folder, offset=after):
                yield from chunk

    def files(self, folder: str) -> Iterator[File]:
        for meta in self._list_folder(folder)["objects"]:
            yield File(_name(meta["path"]), meta["last_modified"].timestamp(), meta["size"])

    def folders(self, folder: str) -> list[str]:
        return sorted(map(_name, self._list_folder(folder)["common_prefixes"]))

    def remove(self, paths: Iterable[str]) -> None:
        folders: list[str] = []
        files: list[str] = []
        for path in paths:
            (folders if path.endswith("/") else files).append(path)
        files += [meta["path"] for folder in folders for meta in self.objects(folder)]
        for start in range(0, len(files), 1000):
            self.delete(files[start : start + 1000])

    def is_newest(self, log: str, version: int) -> bool:
        """One request tells both: what comes from the version's own name on."""
        after = f"{log}/{version - 1:020d}.json" if version else None
        versions = {_name(meta["path"]) for meta in self.objects(log, after)}
        return f"{version:020d}.json" in versions and f"{version + 1:020d}.json" not in versions

    def make_durable(self, paths: Iterable[str], folders: Iterable[str]) -> None:
        """A PUT is durable when it returns."""

    def _list_folder(self, folder: str) -> Any:
        with self._asking():
            return self._api.list_with_delimiter(self._store, folder)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """The store's errors as ours; FileNotFoundError and FileExistsError are for the caller."""
        from obstore import exceptions

        try:
            yield
        except (FileNotFoundError, FileExistsError, SparkTrackingError):
            raise
        except exceptions.NotFoundError as error:
            raise FileNotFoundError(masked(str(error))) from None
        except exceptions.AlreadyExistsError as error:
            raise FileExistsError(masked(str(error))) from None
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise LakeReadOnly(
                f"The object store refused access to '{self.root}': {_reason(error)}. Check the credentials in the environment "
                "(AWS_*, AZURE_*, GOOGLE_*) and what they are allowed to do there: read, write, list and delete."
            ) from None
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise LakeError(
                f"The object store behind '{self.root}' did not do as asked: {_reason(error)}. Check that the bucket or container "
                "exists, and the region, endpoint and credentials in the environment (AWS_*, AZURE_*, GOOGLE_*); then try again."
            ) from None


def _name(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _reason(error: Exception) -> str:
    """The first line of the store's message: the others are the debug form of it. URLs may carry a signature."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return masked(lines[0])[:400].rstrip(". ")
