"""What to write so that a target follows its source: the difference of two sets of registers.

A mirror takes what changed at the source and leaves alone what was changed at the target since: a register is written when the
source's value is another one than at the last sync (the *base*) and than the target's; one that the source no longer has is removed
if the target still holds the synced value. The base is a set of short digests, not the values.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from hashlib import blake2b
from typing import Any

from spark_tracking.kinds.catalog import BY_NAME
from spark_tracking.kinds.shapes import Registers
from spark_tracking.kinds.state import Register, Stamp, time_of
from spark_tracking.lake import Entity, Event
from spark_tracking.mirror.bookmarks import Bookmark
from spark_tracking.readers.reader import Row

OWNER = ("sync", "source")
"""The register that says which source a thing came from."""
MARK_BYTES = 8
_NOWHERE = Stamp(0, "")


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def entity(kind: str, id: str, row: Row) -> Entity:
    """What a server has, as a lake would hold it, so that both are compared in one way."""
    found: dict[str, dict[str, Register]] = {"attr": {"created": Register(_NOWHERE, "0")}}
    for (field, key), value in BY_NAME[kind].registers(row).items():
        if value is not None:
            found.setdefault(field, {})[key] = Register(_NOWHERE, value)
    return Entity(kind, id, found)


def mark(field: str, key: str, value: str) -> bytes:
    """The digest by which the base remembers a value."""
    return blake2b(f"{field}\x00{key}\x00{value}".encode("utf-8", "surrogatepass"), digest_size=MARK_BYTES).digest()


def seen(wanted: Registers, digest: bytes = b"-", points: int | None = None) -> Bookmark:
    """The bookmark that a sync leaves behind. Params never change, so they need no mark."""
    told = (mark(field, key, value) for (field, key), value in wanted.items() if value is not None and field != "param")
    return Bookmark(digest, points, b"".join(sorted(told)))


def seen_marks(bookmark: Bookmark | None) -> frozenset[bytes]:
    """The marks of what the last sync saw."""
    packed = b"" if bookmark is None else bookmark.base
    return frozenset(packed[i : i + MARK_BYTES] for i in range(0, len(packed), MARK_BYTES))


def changes(kind: str, id: str, wanted: Registers, there: Entity | None, bookmark: Bookmark | None) -> Iterator[Event]:
    """The events that bring the target's thing, `there`, up to what its source says, given what the last sync saw."""
    base = seen_marks(bookmark)
    fields = {} if there is None or not there.exists else there.fields
    if ("attr", "deleted") in wanted and wanted["attr", "deleted"] is None:
        wanted = {**wanted, ("attr", "deleted"): _first_seen(wanted["attr", "lifecycle_stage"], fields, base)}
    for (field, key), value in wanted.items():
        if value is None:
            continue
        current = _current(fields, field, key)
        if field == "param":
            if current is None:
                yield Event(kind, id, field, key, value)
        elif current != value and (not fields or mark(field, key, value) not in base):
            yield Event(kind, id, field, key, value)
    for field, registers in fields.items():
        for key, register in registers.items():
            gone = register.value is not None and wanted.get((field, key)) is None and field != "param"
            restored = (field, key) == ("attr", "deleted") and wanted.get(("attr", "lifecycle_stage")) == "active"
            if gone and (mark(field, key, register.value or "") in base or (restored and _is_news(wanted, fields, base))):
                yield Event(kind, id, field, key, None)


def _first_seen(stage: str | None, fields: Mapping[str, Any], base: Collection[bytes]) -> str | None:
    """When a thing of a source that doesn't tell the time was first seen in the trash; None where it is not in the lake's."""
    known = _current(fields, "attr", "deleted")
    if stage != "deleted" or known is not None:
        return known if stage == "deleted" else None
    if _current(fields, "attr", "lifecycle_stage") == "deleted":
        hlc = fields["attr"]["lifecycle_stage"].stamp.hlc
        return str(time_of(hlc) if hlc else now())
    return None if fields and mark("attr", "lifecycle_stage", "deleted") in base else str(now())


def _is_news(wanted: Registers, fields: Mapping[str, Any], base: Collection[bytes]) -> bool:
    """Whether the source's stage is about to become the lake's."""
    stage = wanted["attr", "lifecycle_stage"] or ""
    return _current(fields, "attr", "lifecycle_stage") != stage and mark("attr", "lifecycle_stage", stage) not in base


def _current(fields: Mapping[str, Any], field: str, key: str) -> str | None:
    register = fields.get(field, {}).get(key)
    return None if register is None else register.value
