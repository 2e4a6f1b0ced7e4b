"""The journal of a lake on a file system: one append-only segment per writing process.

`_journal/<writer>-<n>.seg` belongs to the one process that holds its flock. `<segment>.sealed` beside it says that somebody
is taking a dead writer's segment away: an owner that finds its segment sealed or unlinked after a sync was taken for dead
(a lost lock on a network file system) and appends the record again elsewhere, under the same stamp.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from spark_tracking.errors import LakeError
from spark_tracking.lake import storage
from spark_tracking.lake.faults import explained
from spark_tracking.lake.record import PEEK_BYTES, Record, decode, peek
from spark_tracking.lake.storage import Piece

SUFFIX = ".seg"
SEALED = ".sealed"
ROLL_BYTES = 8 * 1024 * 1024
"""A flushed segment beyond this size is replaced by a new one, so that journals stay short."""


def writer_of(segment: str) -> str:
    """The writer whose segment it is."""
    return segment.rsplit("-", 1)[0]


class SegmentWriter:
    """The segment that this process appends to; made at the first append."""

    def __init__(self, folder: Path, sync: bool) -> None:
        self.writer = secrets.token_hex(5)
        self.name = ""
        self.position = 0
        self._folder = folder
        self._sync = sync
        self._count = 0
        self._fd = -1
        self._sealed = ""

    def append(self, record: bytes) -> int:
        """Append and sync one record; returns the position behind it. Durable and visible when this returns.

        Raises:
            LakeReadOnly: the root cannot be written.
            LakeError: the disk is full or failing; nothing of the call counts.
        """
        try:
            while True:
                if self._fd < 0:
                    self._create()
                self._write(record)
                if not self._taken():
                    return self.position
                self.close()
        except OSError as error:
            self.close()  # never appended to again: what stands at its end is unknown
            raise _not_stored(error, self._folder.parent) from error

    def wait(self, ticket: int) -> int:
        """Nothing to wait for."""
        return ticket

    def close(self) -> None:
        """Let go of the segment; it stays until a flush has taken everything in it."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self.name, self.position = -1, "", 0

    def forked(self) -> None:
        """In a forked child: leave the parent's segment, and write under a name of its own."""
        self.close()
        self.writer, self._count = secrets.token_hex(5), 0

    def _create(self) -> None:
        name = f"{self.writer}-{self._count:05d}"
        self._count += 1
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._folder / (name + SUFFIX), flags, 0o666)
        fcntl.flock(self._fd, fcntl.LOCK_EX)  # may wait for a moment for one who takes it for abandoned; see `_taken`
        if self._sync:
            fsync_folder(self._folder)
        self.name, self.position = name, 0
        self._sealed = f"{self._folder}/{name}{SEALED}"

    def _write(self, record: bytes) -> None:
        written = os.write(self._fd, record)
        if written != len(record):
            os.ftruncate(self._fd, self.position)  # a torn record is nobody's; what is found of one later was not known to be so
            raise OSError(28, f"only {written} of {len(record)} bytes could be written")
        if self._sync:
            os.fdatasync(self._fd)
        self.position += written

    def _taken(self) -> bool:
        return os.fstat(self._fd).st_nlink == 0 or os.path.exists(self._sealed)


class SegmentReader:
    """Follows one segment. The open file outlives an unlink, so that nothing of it is missed.

    Attributes:
        position: all records before it have been read.
        ahead: all but those of metric points alone have been read before this position, which is not less.
    """

    __slots__ = ("name", "position", "ahead", "_fd", "_incomplete")

    def __init__(self, folder: Path, name: str, position: int = 0) -> None:
        self.name = name
        self.position = self.ahead = position
        self._incomplete = -1
        self._fd = os.open(folder / (name + SUFFIX), os.O_RDONLY | os.O_CLOEXEC)

    def read(self, points: bool = True) -> Iterator[Record]:
        """The records that came since the last read; without those of metric points alone, if they are not asked for."""
        size = os.fstat(self._fd).st_size
        if not points:
            yield from self._read_ahead(size)
        elif size > self.position:
            data, seen = os.pread(self._fd, size - self.position, self.position), self.ahead
            for record in decode(data, self.position):
                self.position, self.ahead = record.end, max(record.end, seen)
                if record.end > seen or not record.events:
                    yield record

    def _read_ahead(self, size: int) -> Iterator[Record]:
        while self.ahead + PEEK_BYTES <= size:
            length, points_only = peek(os.pread(self._fd, PEEK_BYTES, self.ahead))
            end = self.ahead + length
            if end > size and self.ahead != self._incomplete:
                self._incomplete = self.ahead  # being written; who still finds it so looks whether the length is damaged
                return
            if length and points_only and end <= size:
                self.ahead = end
                continue
            for record in decode(os.pread(self._fd, length, self.ahead), self.ahead):
                self.ahead = record.end
                yield record
            if self.ahead != end or not length:  # damaged: look for what may follow
                yield from self.read()
                return

    def close(self) -> None:
        """Stop following."""
        os.close(self._fd)


class Journal:
    """All segments of a lake, and this process's own; see `lake.storage.AnyJournal`.

    Attributes:
        positions: how far each segment, also one that is gone by now, has been read: all of it, and all but metric points.
    """

    survives_fork = True

    def __init__(self, root: Path, sync: bool = True) -> None:
        self.folder = root / "_journal"
        self.own = SegmentWriter(self.folder, sync)
        self.positions: dict[str, tuple[int, int]] = {}
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
            self.positions[segment] = position, position

    def poll(self, points: bool = True) -> Iterator[tuple[str, Record]]:
        """What all processes wrote since the last poll, this one's own included, with its segment; see `AnyJournal`."""
        names = self.segments()
        for name in names:
            if name not in self._readers:
                self.follow(name, 0)
        gone = self._readers.keys() - names
        for name in list(self._readers):
            yield from self.poll_segment(name, points)
            if name in gone:
                self._readers.pop(name).close()

    def left_out(self) -> int:
        """How many bytes of points are left to a later poll."""
        return sum(reader.ahead - reader.position for reader in self._readers.values())

    def poll_segment(self, name: str, points: bool = True) -> Iterator[tuple[str, Record]]:
        """The same for one segment."""
        reader = self._readers.get(name)
        if reader is None:
            return
        for record in reader.read(points):
            self.positions[name] = reader.position, reader.ahead
            yield name, record
        self.positions[name] = reader.position, reader.ahead

    def size(self, segment: str) -> int:
        """The bytes of a segment now; -1 when it is gone."""
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

    def has_read(self, segment: str, after: int, until: int, points: bool = True) -> bool:
        """Whether the segment has been read up to a position; nothing before it can have been missed."""
        whole, ahead = self.positions.get(segment, (0, 0))
        return (whole if points else ahead) >= until

    def pieces(self) -> list[Piece]:
        """The segments that exist now."""
        return [_whole(segment) for segment in self.segments()]

    def content(self, piece: Piece) -> bytes | None:
        """The bytes of a segment; None when it is gone."""
        try:
            return (self.folder / (piece.name + SUFFIX)).read_bytes()
        except FileNotFoundError:
            return None

    def ended(self, own: str = "") -> list[Piece]:
        """The segments of dead writers, and `own`, which this process has let go of; sealed from now on."""
        self._clear_seals()
        ended = [segment for segment in self.segments() if segment == own or self.abandoned(segment)]
        for segment in ended:
            self.seal(segment)
        return [_whole(segment) for segment in ended]

    def abandoned(self, segment: str) -> bool:
        """Whether its owner is gone: nobody holds its lock."""
        if segment == self.own.name:
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
        """Remove sealed segments whose records are all on disk in Delta."""
        for piece in pieces:
            for suffix in (SUFFIX, SEALED):
                (self.folder / (piece.name + suffix)).unlink(missing_ok=True)

    def set_aside(self, piece: Piece) -> None:
        """Move a sealed segment away that has bytes which are no records; readers have taken, and Delta has, all the others."""
        storage.of(str(self.folder.parent)).set_aside(f"{self.folder.name}/{piece.name}{SUFFIX}")
        (self.folder / (piece.name + SEALED)).unlink(missing_ok=True)

    def may_grow(self, piece: Piece) -> bool:
        """Whether somebody holds the segment's lock."""
        return not self.abandoned(piece.segment)

    def forked(self) -> None:
        """In a forked child: nothing open is shared with the parent."""
        self.own.forked()
        for name, reader in list(self._readers.items()):
            position = reader.position
            reader.close()
            del self._readers[name]
            self.follow(name, position)


def _whole(segment: str) -> Piece:
    return Piece(segment, segment, 0, True)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _not_stored(error: OSError, root: Path) -> LakeError:
    told = explained(error, str(root))
    return type(told)(f"The call was not stored. {told.message}")
