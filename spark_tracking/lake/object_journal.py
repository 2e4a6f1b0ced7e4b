"""The journal of a lake on an object store, where nothing can be appended: a segment is a sequence of small objects.

`_journal/<segment>/<start>` holds the segment's bytes from `start` (16 hexadecimal digits) on. One process writes a segment,
one object after the other, each once and whole: calls that meet while a PUT is under way go into the next object together.
So an object never changes, and one whose records are in the logs can go whoever wrote it and whether he lives. Each segment
keeps its newest object until it has been idle for a while, so that a reader who comes late sees that there was something.

A process has two segments: objects with metric points alone go into `<name>p`, which others need not get to write.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spark_tracking.delta.object_store import ObjectStore
from spark_tracking.errors import LakeError
from spark_tracking.lake.journal import POINTS, Piece
from spark_tracking.lake.journal_record import Record, decode

FOLDER = "_journal"
IDLE_SECONDS = 600.0
"""How long a segment without news is kept open; a writer may go on with it later all the same."""
PARALLEL = 8


class _Object(NamedTuple):
    path: str
    segment: str
    start: int
    end: int
    modified: float


@dataclass
class Batch:
    """The records of one PUT.

    Attributes:
        points: whether they hold metric points alone.
        position: the position behind them, once they are stored.
    """

    records: list[bytes] = field(default_factory=list)
    points: bool = True
    position: int = 0
    done: bool = False
    error: Exception | None = None


class ObjectAppender:
    """See `lake.journal.SegmentWriter`. Whoever waits first does the PUT, for all whose records are in the batch by then."""

    def __init__(self, objects: ObjectStore) -> None:
        self.writer = secrets.token_hex(5)
        self._leave()
        self._objects = objects
        self._contents = objects.kept
        self._count = 0
        self._open = Batch()
        self._filling = threading.Lock()
        self._putting = threading.Lock()

    @property
    def position(self) -> int:
        """The ends of both segments, together."""
        return sum(self._ends.values())

    def append(self, record: bytes, points: bool = False) -> Batch:
        with self._filling:
            self._open.records.append(record)
            self._open.points &= points
            return self._open

    def wait(self, ticket: Any) -> int:
        batch: Batch = ticket
        with self._putting:
            if not batch.done:
                with self._filling:
                    self._open = Batch()
                self._put(batch)
        if batch.error is not None:
            raise batch.error
        return batch.position

    def close(self) -> None:
        with self._putting:
            self._leave()

    def _leave(self) -> None:
        self.name, self._ends = "", {"": 0, POINTS: 0}

    def _put(self, batch: Batch) -> None:
        data = b"".join(batch.records)
        kind = POINTS if batch.points else ""
        try:
            while not self._stored(data, kind):
                self._leave()  # somebody else has written under this name: a copied virtual machine
            self._ends[kind] += len(data)
            batch.position = self.position
        except Exception as error:
            self._leave()  # never gone on with: the object may still turn up
            batch.error = error if isinstance(error, LakeError) else LakeError(f"The journal could not be written: {error}")
        batch.done = True

    def _stored(self, data: bytes, kind: str) -> bool:
        if not self.name:
            self.name = f"{self.writer}-{self._count:05d}"
            self._count += 1
        path = f"{FOLDER}/{self.name}{kind}/{self._ends[kind]:016x}"
        if not self._objects.create(path, data):
            try:
                if self._objects.read(path) != data:
                    self.writer = secrets.token_hex(5)
                    return False
            except FileNotFoundError:
                pass  # the answer to our own PUT was lost, and somebody has flushed it already
        self._contents[path] = data
        return True


class ObjectJournal:
    """All segments of a lake, and this process's own, with the methods of `lake.journal.Journal`."""

    survives_fork = False

    def __init__(self, objects: ObjectStore) -> None:
        self.own = ObjectAppender(objects)
        self._objects = objects
        self._contents = objects.kept  # what this process read and wrote; objects that are gone are dropped
        self._listing: dict[str, list[_Object]] = {}
        self._positions: dict[str, int] = {}
        self._gaps: dict[str, int] = {}  # by segment, the end of what was gone before it could be read

    def segments(self) -> list[str]:
        return list(self._list())

    def follow(self, segment: str, position: int) -> None:
        self._positions.setdefault(segment, position)

    def forget(self) -> None:
        self._positions.clear()
        self._gaps.clear()

    def poll(self, points: bool = True) -> Iterator[tuple[str, Record]]:
        wanted = [found for segment, found in self._list().items() if points or not segment.endswith(POINTS)]
        news = [o for found in wanted for o in found if o.end > self._positions.get(o.segment, 0)]
        for found, content in zip(news, self._fetch(news)):
            position = self._positions.get(found.segment, 0)
            if content is None or found.start > position:
                self._gaps[found.segment] = found.end if content is None else found.start
            for record in decode(content or b"", found.start):
                if record.end > position:
                    self._positions[found.segment] = record.end
                    yield found.segment, record

    def left_out(self) -> int:
        kept = (found for segment, found in self._listing.items() if segment.endswith(POINTS))
        return sum(o.end - o.start for found in kept for o in found if o.end > self._positions.get(o.segment, 0))

    def poll_segment(self, name: str) -> Iterator[tuple[str, Record]]:
        """Nothing: what a poll did not find was flushed and removed, so that the logs have it."""
        return iter(())

    def has_read(self, segment: str, after: int, until: int) -> bool:
        return self._positions.get(segment, 0) >= until and self._gaps.get(segment, 0) <= after

    def size(self, segment: str) -> int:
        found = self._listing.get(segment)
        return found[-1].end if found else -1

    def read(self, segment: str, position: int) -> list[Record] | None:
        found = [o for o in self._listing.get(segment, ()) if o.end > position]
        contents = self._fetch(found)
        if not found or None in contents:
            return None
        records = (r for o, content in zip(found, contents) for r in decode(content or b"", o.start))
        return [record for record in records if record.end > position]

    def pieces(self) -> list[Piece]:
        return [Piece(o.segment, o.path, o.start, o is found[-1]) for found in self._list().values() for o in found]

    def content(self, piece: Piece) -> bytes | None:
        return self._get(piece.name)

    def ended(self, own: str = "") -> list[Piece]:
        pieces = self.pieces()
        mine = {own, own + POINTS} if own else ()
        idle = {s for s, found in self._listing.items() if s in mine or time.time() - found[-1].modified > IDLE_SECONDS}
        return [piece for piece in pieces if not piece.last or piece.segment in idle]

    def remove(self, pieces: Iterable[Piece]) -> None:
        self._objects.delete([piece.name for piece in pieces])

    def set_aside(self, piece: Piece) -> None:
        self._objects.set_aside(piece.name)

    def may_grow(self, piece: Piece) -> bool:
        return False  # objects are written whole

    def forked(self) -> None:
        """The threads that talk to the store did not survive; see `survives_fork`."""

    def _list(self) -> dict[str, list[_Object]]:
        listing: dict[str, list[_Object]] = {}
        known = list(self._contents)
        paths = set()
        for meta in self._objects.objects(FOLDER):
            path = meta["path"]
            _, segment, start = path.rsplit("/", 2)
            at = int(start, 16)
            listing.setdefault(segment, []).append(_Object(path, segment, at, at + meta["size"], meta["last_modified"].timestamp()))
            paths.add(path)
        for path in known:
            if path not in paths:
                self._contents.pop(path, None)
        self._listing = listing
        return listing

    def _fetch(self, objects: Sequence[_Object]) -> list[bytes | None]:
        missing = [o.path for o in objects if o.path not in self._contents]
        if len(missing) > 1:
            with suppress(RuntimeError), ThreadPoolExecutor(min(PARALLEL, len(missing))) as pool:
                list(pool.map(self._get, missing))  # at a process's exit Python starts no threads: one by one below
        return [self._get(o.path) for o in objects]

    def _get(self, path: str) -> bytes | None:
        content = self._contents.get(path)
        if content is None:
            try:
                content = self._contents[path] = self._objects.read(path)
            except FileNotFoundError:
                return None
        return content
