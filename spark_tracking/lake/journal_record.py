"""Journal records: one call of a writer, as bytes.

Layout (little endian): four bytes by which a reader finds the next record behind a damaged one, payload length (u32), CRC-32 of
stamp and payload (u32), stamp (i64), payload. The payload is msgpack of
`[events, blocks]`; a block stays packed until somebody wants its points, since most readers only want to know whose they are.
Numbers travel as packed columns, so NaN and infinities keep their bits.
"""

from __future__ import annotations

import struct
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

import msgpack

from spark_tracking.errors import InvalidInput
from spark_tracking.kinds.state import COUNTER_BITS, Event, MetricBlock

LAST_MS = (2**63 - 1) // 1000
"""The greatest time of a point, in ms since the epoch: a Delta timestamp is an int64 of microseconds."""
_MAGIC = b"\xc1rec"  # 0xC1 is the one byte that msgpack never uses for a type
_HEADER = struct.Struct("<4sIIq")
_STAMP_AT = _HEADER.size - 8
_STAMP = struct.Struct("<q")


class Clock:
    """The hybrid logical clock that orders every change in a lake; the caller serialises access.

    A stamp is one int64: milliseconds since the epoch in the upper bits, a counter in the lower 16. It never goes back and is
    never behind anything that its process has seen, so a change made after reading another one is later than it, whatever the
    wall clocks of the two machines say (Kulkarni et al., "Logical Physical Clocks", 2014).

    Example:
        >>> clock = Clock()
        >>> clock.observe(2**62)
        >>> clock.tick() > 2**62
        True
    """

    def __init__(self) -> None:
        self._last = 0

    def tick(self) -> int:
        """A stamp later than every one ticked or observed before."""
        self._last = max(time.time_ns() // 1_000_000 << COUNTER_BITS, self._last + 1)
        return self._last

    def observe(self, hlc: int) -> None:
        """Never fall behind `hlc`."""
        if hlc > self._last:
            self._last = hlc


class RawBlock(NamedTuple):
    """What stands in a packed block: the numbers as bytes, eight a point."""

    experiment_id: str
    names: list[str]
    values: bytes
    times: bytes
    steps: bytes
    dataset_name: str | None
    dataset_digest: str | None


class PackedBlock:
    """A `MetricBlock` that is decoded when asked; `run_id` and `model_id` are known at once."""

    __slots__ = ("run_id", "model_id", "packed")

    def __init__(self, run_id: str, model_id: str | None, packed: bytes) -> None:
        self.run_id = run_id
        self.model_id = model_id
        self.packed = packed

    def __len__(self) -> int:
        return len(self.packed)

    def raw(self) -> RawBlock:
        """The points with their numbers still packed, as columns want them."""
        return RawBlock(*msgpack.unpackb(self.packed))

    def unpack(self) -> MetricBlock:
        """The points."""
        raw = self.raw()
        return MetricBlock(
            self.run_id,
            raw.experiment_id,
            raw.names,
            array("d", raw.values).tolist(),
            array("q", raw.times).tolist(),
            array("q", raw.steps).tolist(),
            self.model_id,
            raw.dataset_name,
            raw.dataset_digest,
        )


@dataclass(slots=True)
class Record:
    """A decoded record.

    Attributes:
        hlc: the stamp of the whole call.
        end: the position in its segment behind the record, in bytes.
    """

    hlc: int
    end: int
    events: list[Event]
    blocks: list[PackedBlock]


def _pack(message: object) -> bytes:
    """msgpack of a message. Raises InvalidInput: a text in it cannot be stored."""
    try:
        packed: bytes = msgpack.packb(message)
        return packed
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"The text {error.object!r:.80} has a character that is none (a lone surrogate at {error.start}); remove it."
        ) from None


def pack_block(block: MetricBlock) -> bytes:
    """The points of a block as bytes. Times beyond what a Delta timestamp holds are its last, or first, moment.

    Raises:
        InvalidInput: an id or name of what the points belong to is no text.
    """
    _require_texts(block.run_id, block.experiment_id, block.model_id, block.dataset_name, block.dataset_digest)
    times = block.times
    if times and (max(times) > LAST_MS or min(times) < -LAST_MS):
        times = [min(max(time, -LAST_MS), LAST_MS) for time in times]
    packed: bytes = _pack(
        [
            block.experiment_id,
            block.names,
            array("d", block.values).tobytes(),
            array("q", times).tobytes(),
            array("q", block.steps).tobytes(),
            block.dataset_name,
            block.dataset_digest,
        ]
    )
    return packed


def last_of_each(events: Sequence[Event]) -> list[Event]:
    """One event a register: within a call the last value stands, and the first of a param.

    Raises:
        InvalidInput: something in an event is no text; once in a journal it could never be flushed.
    """
    kept: dict[tuple[str, ...], Event] = {}
    for event in events:
        if event.key is None:
            raise InvalidInput(f"A {event.field} of {event.kind} '{event.id}' has no name; give it one, of type str.")
        _require_texts(*event)
        if event.field != "param" or event[:4] not in kept:
            kept[event[:4]] = event
    return list(kept.values())


def _require_texts(*values: object) -> None:
    for value in values:
        if not (value is None or isinstance(value, str)):
            raise InvalidInput(f"The value {value!r:.80} is of type {type(value).__name__}; expected a text, use str().")


def encode(hlc: int, events: Sequence[Event], blocks: Sequence[PackedBlock]) -> bytes:
    """One record, ready to be appended."""
    payload: bytes = _pack([events, [(b.run_id, b.model_id, b.packed) for b in blocks]])
    stamp = _STAMP.pack(hlc)
    return _HEADER.pack(_MAGIC, len(payload), crc32(payload, crc32(stamp)), hlc) + payload


PAGE_BYTES = 4096


def decode(data: bytes, start: int) -> Iterator[Record]:
    """The whole records in `data`, which begins at position `start` of its segment. Stops at a torn end.

    A damaged record that whole ones follow (a crash tears only the last) is left out; `unreadable` finds it.
    """
    for _, end, hlc, payload in _frames(data):
        if payload is not None:
            events, blocks = msgpack.unpackb(payload)
            yield Record(hlc, start + end, [Event(*e) for e in events], [PackedBlock(*b) for b in blocks])


def unreadable(data: bytes) -> list[tuple[int, int]]:
    """Where bytes are no whole record, as (position, length): changed on disk, or at the end also a record that was cut off."""
    return [(at, end - at) for at, end, _, payload in _frames(data) if payload is None]


def is_torn_write(data: bytes, at: int) -> bool:
    """Whether the record that begins at `at` is what a process leaves that was killed in the midst of its write.

    The kernel then stops at the end of a page of the file, before the record's own end.
    """
    head = data[at : at + _HEADER.size]
    whole = len(head) == _HEADER.size and at + _HEADER.size + _HEADER.unpack(head)[1] <= len(data)
    return len(data) % PAGE_BYTES == 0 and not whole


def _frames(data: bytes) -> Iterator[tuple[int, int, int, memoryview | None]]:
    """(start, end, stamp, payload) of each record; payload is None for what is damaged in between."""
    at, bad, view = 0, -1, memoryview(data)
    while at + _HEADER.size <= len(data):
        magic, length, checksum, hlc = _HEADER.unpack_from(data, at)
        body, end = at + _HEADER.size, at + _HEADER.size + length
        if magic == _MAGIC and end <= len(data) and crc32(view[at + _STAMP_AT : end]) == checksum:
            if bad >= 0:
                yield bad, at, 0, None
            yield at, end, hlc, view[body:end]
            at, bad = end, -1
            continue
        bad = at if bad < 0 else bad
        at = data.find(_MAGIC, at + 1)
        if at < 0:
            break
    if bad >= 0 or at < len(data):  # a torn end, or one that is being written
        yield bad if bad >= 0 else at, len(data), 0, None
