"""Where a lake lies: what the lake asks of a folder or of an object store, and which of the two a root is.

A folder has locks, links and files that grow; an object store has objects that are written whole, once. Everything else of
the lake is the same on both, and is written against these protocols.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from spark_tracking.lake.record import Record

SET_ASIDE = "_set_aside"
"""The folder of what was damaged: kept for a person to judge, and read by nobody."""


class Piece(NamedTuple):
    """What a journal gives up at a time: a whole segment on a file system, one object of it on an object store.

    Attributes:
        start: the position of its first byte in the segment.
        last: whether the segment ends with it.
    """

    segment: str
    name: str
    start: int
    last: bool


class File(NamedTuple):
    """A file of a folder; `modified` is in seconds since the epoch, `size` in bytes."""

    name: str
    modified: float
    size: int


class Appender(Protocol):
    """The segment that this process appends to; made at the first append.

    Attributes:
        writer: the name of this process in stamps.
        name: the segment (on an object store, a pair of them); "" while there is none.
    """

    writer: str
    name: str

    @property
    def position(self) -> int:
        """The segment's end."""

    def append(self, record: bytes) -> Any:
        """Take a record; the caller serialises appends. Returns what `wait` wants."""

    def wait(self, ticket: Any) -> int:
        """Return the position behind the record once it is durable and visible to all; callers need not be serialised.

        Raises:
            LakeReadOnly, LakeError: by this or by `append`: the call was not stored.
        """

    def close(self) -> None:
        """Let go of the segment; it stays until a flush has taken everything in it."""


class AnyJournal(Protocol):
    """All segments of a lake, and this process's own."""

    @property
    def own(self) -> Appender:
        """What this process appends to."""

    @property
    def survives_fork(self) -> bool:
        """Whether a forked child can append to it."""

    def segments(self) -> list[str]:
        """The segments that exist now."""

    def follow(self, segment: str, position: int) -> None:
        """Begin reading `segment` at `position`: what lies before it is known from the logs."""

    def forget(self) -> None:
        """Forget what was read."""

    def poll(self, points: bool = True) -> Iterator[tuple[str, Record]]:
        """What all processes wrote since the last poll, this one's own included, with its segment.

        Args:
            points: else records of metric points alone are left to a later poll.
        """

    def left_out(self) -> int:
        """How many bytes of points are left to a later poll."""

    def poll_segment(self, name: str, points: bool = True) -> Iterator[tuple[str, Record]]:
        """The same for one segment."""

    def has_read(self, segment: str, after: int, until: int, points: bool = True) -> bool:
        """Whether polls have returned all that lies between two positions of a segment; all but points, if those are not asked for."""

    def size(self, segment: str) -> int:
        """The end of a segment, as of `segments` or later; -1 when it is gone."""

    def read(self, segment: str, position: int) -> list[Record] | None:
        """The records of a segment from `position` on, read afresh; None when it, or some of them, are gone."""

    def pieces(self) -> list[Piece]:
        """What exists now."""

    def content(self, piece: Piece) -> bytes | None:
        """The bytes of a piece; None when it is gone."""

    def ended(self, own: str = "") -> list[Piece]:
        """The pieces to which nothing will be added any more, those of dead writers and of the segment `own` among them."""

    def remove(self, pieces: Iterable[Piece]) -> None:
        """Remove ended pieces whose records are all durable in Delta."""

    def set_aside(self, piece: Piece) -> None:
        """Move an ended piece away whose whole records are durable in Delta, and that has bytes that are none."""

    def may_grow(self, piece: Piece) -> bool:
        """Whether its writer lives and may be in the midst of a record."""

    def forked(self) -> None:
        """In a forked child: nothing is shared with the parent any more."""


class Storage(Protocol):
    """A lake's root. Paths are relative to it, with slashes.

    Attributes:
        root: as Delta engines take it.
        patience: seconds for which a reader may put off looking for newer derived tables; looking costs calls.
        syncs: whether what others wrote has to be made durable; see `make_durable`.
        is_local: whether it is a folder.
    """

    root: str
    is_local: bool
    patience: float
    syncs: bool

    def journal(self, sync: bool = True) -> AnyJournal:
        """A handle of the journal; with `sync`, a call is on disk before it returns."""

    def leadership(self, wait: bool) -> AbstractContextManager[bool]:
        """Be the one process that flushes; yields whether it was got. Correctness never depends on it.

        Args:
            wait: until others have finished.
        """

    def prepare(self, folders: Iterable[str]) -> None:
        """Make the root and folders in it, where folders have to be made."""

    def names(self) -> list[str]:
        """What lies directly in the root."""

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""

    def read(self, path: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is none.
        """

    def fetch(self, paths: Sequence[str]) -> list[pa.Buffer]:
        """The contents of files that never change, in Arrow's own memory.

        Raises:
            FileNotFoundError: one is not there.
        """

    def create(self, path: str, data: bytes) -> bool:
        """Make a file, whole or not at all; False when it is there already."""

    def note(self, path: str, data: bytes) -> None:
        """Put a file in place of what is there; a crash may leave a torn one."""

    def set_aside(self, path: str) -> str:
        """Move a file out of the way, to where nothing of a lake looks; returns where to. It stays until a person removes it."""

    def remove_folder(self, parent: str, own: str) -> None:
        """Remove the folder `parent/own` with all in it; none is no error. A link on the way down `own` is unlinked, never followed.

        Raises:
            OSError, LakeError: it could not be removed, or `parent` leads through a link.
        """

    def files(self, folder: str) -> Iterator[File]:
        """The files directly in a folder."""

    def folders(self, folder: str) -> list[str]:
        """The names of the folders in a folder."""

    def remove(self, paths: Iterable[str]) -> None:
        """Delete files, and folders (which end in a slash) with what is in them; none is no error, and links are not followed."""

    def is_newest(self, log: str, version: int) -> bool:
        """Whether a Delta log has this version and none after it. A log is cleaned from its old end, but of its newest version."""

    def make_durable(self, paths: Iterable[str], folders: Iterable[str]) -> None:
        """See to it that files written by others, and their names, survive a power loss."""


@lru_cache(maxsize=64)
def of(root: str) -> Storage:
    """The storage of a root as `LakeUri.root` gives it; one instance a process.

    Raises:
        InvalidSetting: the root is a cloud URL and what talks to it is not installed.
    """
    if "://" in root:
        from spark_tracking.lake.object_storage import ObjectStorage

        return ObjectStorage(root)
    from spark_tracking.lake.file_storage import FileStorage

    return FileStorage(root)
