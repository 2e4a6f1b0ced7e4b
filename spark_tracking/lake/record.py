"""Journal records: one call of a writer, as bytes.

Layout (little endian): payload length (u32), CRC-32 of stamp and payload (u32), stamp (i64), payload. The payload is msgpack of
`[events, blocks]`; a block stays packed until somebody wants its points, since most readers only want to know whose they are.
Numbers travel as packed columns, so NaN and infinities keep their bits.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

import msgpack

from spark_tracking.lake.state import Event, MetricBlock

_HEADER = struct.Struct("<IIq")
_STAMP = struct.Struct("<q")


class PackedBlock:
    """A `MetricBlock` that is decoded when asked; `run_id` and `model_id` are known at once."""

    __slots__ = ("run_id", "model_id", "packed")

    def __init__(self, run_id: str, model_id: str | None, packed: bytes) -> None:
        self.run_id = run_id
        self.model_id = model_id
        self.packed = packed

    def __len__(self) -> int:
        return len(self.packed)

    def unpack(self) -> MetricBlock:
        """The points."""
        experiment_id, names, values, times, steps, dataset_name, dataset_digest = msgpack.unpackb(self.packed)
        return MetricBlock(
            self.run_id,
            experiment_id,
            names,
            array("d", values).tolist(),
            array("q", times).tolist(),
            array("q", steps).tolist(),
            self.model_id,
            dataset_name,
            dataset_digest,
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


def pack_block(block: MetricBlock) -> bytes:
    """The points of a block as bytes."""
    packed: bytes = msgpack.packb(
        [
            block.experiment_id,
            block.names,
            array("d", block.values).tobytes(),
            array("q", block.times).tobytes(),
            array("q", block.steps).tobytes(),
            block.dataset_name,
            block.dataset_digest,
        ]
    )
    return packed


def encode(hlc: int, events: Sequence[Event], blocks: Sequence[PackedBlock]) -> bytes:
    """One record, ready to be appended."""
    payload = msgpack.packb([events, [(b.run_id, b.model_id, b.packed) for b in blocks]])
    stamp = _STAMP.pack(hlc)
    return _HEADER.pack(len(payload), crc32(payload, crc32(stamp)), hlc) + payload


def decode(data: bytes, start: int) -> Iterator[Record]:
    """The whole records in `data`, which begins at position `start` of its segment. Stops at the first torn one."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, checksum, hlc = _HEADER.unpack_from(data, at)
        body = at + _HEADER.size
        payload = data[body : body + length]
        if len(payload) < length or crc32(payload, crc32(data[at + 8 : body])) != checksum:
            return
        at = body + length
        events, blocks = msgpack.unpackb(payload)
        yield Record(hlc, start + at, [Event(*e) for e in events], [PackedBlock(*b) for b in blocks])
