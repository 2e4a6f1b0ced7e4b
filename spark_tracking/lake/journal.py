"""The journal of a lake on a file system: append-only segments, two per writing process.

`_journal/<writer>-<n>.seg` belongs to the one process that holds its flock; calls with metric points alone, which others need
not read to write, go into `<writer>-<n>p.seg`. `<segment>.sealed` beside it says that somebody is taking a dead writer's segment
away: an owner that finds its segment sealed or unlinked after a sync was taken for dead (a lost lock on a network file system)
and appends the record again elsewhere, under the same stamp.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from spark_tracking.delta import storage
from spark_tracking.delta.faults import explained
from spark_tracking.delta.folder import fsync_folder
from spark_tracking.errors import LakeError
from spark_tracking.lake.journal_record import Record, decode

POINTS = "p"
"""What the name of a segment ends with that holds nothing but metric points."""
SUFFIX = ".seg"
SEALED = ".sealed"
ROLL_BYTES = 8 * 1024 * 1024
"""A flushed segment beyond this size is replaced by a new one, so that journals stay short."""


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


def writer_of(segment: str) -> str:
    """The writer whose segment it is."""
    return segment.rsplit("-", 1)[0]


@dataclass
class Segment:
    """An open segment of this process; `position` is its end."""

    name: str
    fd: int
    sealed: str
    position: int = 0

    def taken(self) -> bool:
        """Whether somebody takes it away, or has."""
        return os.fstat(self.fd).st_nlink == 0 or os.path.exists(self.sealed)


class SegmentWriter:
    """What this process appends to: a segment, and one for points alone; each made when it is needed.

    Attributes:
        writer: the name of this process in stamps.
        name: the first segment's, and that of the other but for `POINTS`; "" while there is none.
    """

    def __init__(self, folder: Path, sync: bool) -> None:
        self.writer = secrets.token_hex(5)
        self.name = ""
        self._folder = folder
        self._sync = sync
        self._count = 0
        self._segments: dict[str, Segment] = {}

    @property
    def position(self) -> int:
        """The ends of both segments, together."""
        return sum(segment.position for segment in self._segments.values())

    def append(self, record: bytes, points: bool = False) -> int:
        """Append and sync one record; returns what `wait` wants. The caller serialises appends.

        Args:
            points: whether it holds metric points alone.

        Raises:
            LakeReadOnly: the root cannot be written.
            LakeError: the disk is full or failing; nothing of the call counts.
        """
        try:
            while True:
                segment = self._segments.get(POINTS if points else "") or self._create(POINTS if points else "")
                self._write(segment, record)
                if not segment.taken():
                    return self.position
                self.close()
        except OSError as error:
            self.close()  # never appended to again: what stands at its end is unknown
            raise _not_stored(error, self._folder.parent) from error

    def wait(self, ticket: Any) -> int:
        """Return the position behind the record once it is durable and visible to all: here it is, already."""
        return int(ticket)

    def close(self) -> None:
        """Let go of the segments; they stay until a flush has taken everything in them."""
        for segment in self._segments.values():
            os.close(segment.fd)
        self._segments, self.name = {}, ""

    def forked(self) -> None:
        """In a forked child: leave the parent's segments, and write under a name of its own."""
        self.close()
        self.writer, self._count = secrets.token_hex(5), 0

    def _create(self, kind: str) -> Segment:
        if not self.name:
            self.name = f"{self.writer}-{self._count:05d}"
            self._count += 1
        name = self.name + kind
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        segment = Segment(name, os.open(self._folder / (name + SUFFIX), flags, 0o666), f"{self._folder}/{name}{SEALED}")
        self._segments[kind] = segment
        fcntl.flock(segment.fd, fcntl.LOCK_EX)  # may wait for a moment for one who takes it for abandoned; see `taken`
        if self._sync:
            fsync_folder(self._folder)
        return segment

    def _write(self, segment: Segment, record: bytes) -> None:
        written = os.write(segment.fd, record)
        if written != len(record):
            os.ftruncate(segment.fd, segment.position)  # a torn record is nobody's; what is found of one later was not known to be so
            raise OSError(28, f"only {written} of {len(record)} bytes could be written")
        if self._sync:
            os.fdatasync(segment.fd)
        segment.position += written


class SegmentReader:
    """Follows one segment. The open file outlives an unlink, so that nothing of it is missed.

    Attributes:
        position: all records before it have been read.
    """

    __slots__ = ("name", "position", "_fd")

    def __init__(self, folder: Path, name: str, position: int = 0) -> None:
        self.name = name
        self.position = position
        self._fd = os.open(folder / (name + SUFFIX), os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> Iterator[Record]:
        """The records that have come since the last read."""
        size = os.fstat(self._fd).st_size
        if size > self.position:
            for record in decode(os.pread(self._fd, size - self.position, self.position), self.position):
                self.position = record.end
                yield record

    def close(self) -> None:
        """Stop following."""
        os.close(self._fd)


class Journal:
    """All segments of a lake, and this process's own; see `lake.journals`.

    Attributes:
        survives_fork: whether a forked child can append to it.
        positions: how far each segment, also one that is gone by now, has been read.
    """

    survives_fork = True

    def __init__(self, root: Path, sync: bool = True) -> None:
        self.folder = root / "_journal"
        self.own = SegmentWriter(self.folder, sync)
        self.positions: dict[str, int] = {}
        self._readers: dict[str, SegmentReader] = {}

    def segments(self) -> list[str]:
        """The segments that exist now."""
        return [name[: -len(SUFFIX)] for name in os.listdir(self.folder) if name.endswith(SUFFIX)]

    def forget(self) -> None:
        """Forget what was read."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        self.positions.clear()

    def follow(self, segment: str, position: int) -> None:
        """Begin reading `segment` at `position`: what lies before it is known from the logs."""
        if segment not in self._readers:
            try:
                self._readers[segment] = SegmentReader(self.folder, segment, position)
            except FileNotFoundError:
                return
            self.positions[segment] = position

    def poll(self, points: bool = True) -> Iterator[tuple[str, Record]]:
        """What all processes wrote since the last poll, this one's own included, with its segment.

        Args:
            points: else segments with metric points alone are left to a later poll.
        """
        names = self.segments()
        for name in names:
            if name not in self._readers and (points or not name.endswith(POINTS)):
                self.follow(name, 0)
        gone = self._readers.keys() - names
        for name in list(self._readers):
            if points or not name.endswith(POINTS):
                yield from self.poll_segment(name)
                if name in gone:
                    self._readers.pop(name).close()

    def left_out(self) -> int:
        """How many bytes of points are left to a later poll."""
        return sum(max(self.size(name) - self.positions.get(name, 0), 0) for name in self.segments() if name.endswith(POINTS))

    def poll_segment(self, name: str) -> Iterator[tuple[str, Record]]:
        """The same of one segment, if it is followed."""
        reader = self._readers.get(name)
        for record in reader.read() if reader else ():
            self.positions[name] = record.end
            yield name, record

    def size(self, segment: str) -> int:
        """The end of a segment, as of `segments` or later; -1 when it is gone."""
        try:
            return (self.folder / (segment + SUFFIX)).stat().st_size
        except FileNotFoundError:
            return -1

    def read(self, segment: str, position: int) -> list[Record] | None:
        """The records of a segment from `position` on, read afresh; None when it is gone."""
        try:
            reader = SegmentReader(self.folder, segment, position)
        except FileNotFoundError:
            return None
        try:
            return list(reader.read())
        finally:
            reader.close()

    def has_read(self, segment: str, after: int, until: int) -> bool:
        """Whether polls have returned all that lies between two positions of a segment; here nothing before a position can be missed."""
        return self.positions.get(segment, 0) >= until

    def pieces(self) -> list[Piece]:
        """What exists now."""
        return [_whole(segment) for segment in self.segments()]

    def content(self, piece: Piece) -> bytes | None:
        """The bytes of a piece; None when it is gone."""
        try:
            return (self.folder / (piece.name + SUFFIX)).read_bytes()
        except FileNotFoundError:
            return None

    def ended(self, own: str = "") -> list[Piece]:
        """Pieces to which nothing will be added: those of dead writers, and of `own`, which this process let go of; sealed from now on."""
        self._clear_seals()
        ended = [segment for segment in self.segments() if segment in _pair(own) or self.abandoned(segment)]
        for segment in ended:
            self.seal(segment)
        return [_whole(segment) for segment in ended]

    def abandoned(self, segment: str) -> bool:
        """Whether its owner is gone: nobody holds its lock."""
        if segment in _pair(self.own.name):
            return False
        try:
            fd = os.open(self.folder / (segment + SUFFIX), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(fd)

    def seal(self, segment: str) -> None:
        """Announce that the segment is being taken away."""
        with open(self.folder / (segment + SEALED), "a"):
            pass

    def _clear_seals(self) -> None:
        """Remove the seals of segments that are gone, whose remover was killed on the way."""
        names = set(os.listdir(self.folder))
        for seal in (name for name in names if name.endswith(SEALED)):
            if seal.removesuffix(SEALED) + SUFFIX not in names:
                (self.folder / seal).unlink(missing_ok=True)

    def remove(self, pieces: Iterable[Piece]) -> None:
        """Remove ended pieces whose records are all on disk in Delta."""
        for piece in pieces:
            for suffix in (SUFFIX, SEALED):
                (self.folder / (piece.name + suffix)).unlink(missing_ok=True)

    def set_aside(self, piece: Piece) -> None:
        """Move an ended piece away that has bytes which are no records; readers have taken, and Delta has, all the others."""
        storage.of(str(self.folder.parent)).set_aside(f"{self.folder.name}/{piece.name}{SUFFIX}")
        (self.folder / (piece.name + SEALED)).unlink(missing_ok=True)

    def may_grow(self, piece: Piece) -> bool:
        """Whether its writer lives, who holds the segment's lock, and may be in the midst of a record."""
        return not self.abandoned(piece.segment)

    def forked(self) -> None:
        """In a forked child: nothing open is shared with the parent."""
        self.own.forked()
        for name, reader in list(self._readers.items()):
            position = reader.position
            reader.close()
            del self._readers[name]
            self.follow(name, position)


def _pair(name: str) -> tuple[str, ...]:
    return (name, name + POINTS) if name else ()


def _whole(segment: str) -> Piece:
    return Piece(segment, segment, 0, True)


def _not_stored(error: OSError, root: Path) -> LakeError:
    told = explained(error, str(root))
    return type(told)(f"The call was not stored. {told.message}")
