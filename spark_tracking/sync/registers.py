"""Rows of the readers as a lake's registers, and what to write so that a lake follows its source.

A mirror takes what changed at the source and leaves alone what was changed in the lake since: a register is written when the
source's value is another one than at the last sync (the *base*) and than the lake's; one that the source no longer has is removed
if the lake still holds the synced value. The base is a set of short digests, not the values.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from hashlib import blake2b
from typing import Any

from spark_tracking.errors import InvalidInput
from spark_tracking.lake import Entity, Event
from spark_tracking.lake.clock import milliseconds as of_stamp
from spark_tracking.lake.state import Register, Stamp

Row = dict[str, Any]
Registers = dict[tuple[str, str], str | None]
OWNER = ("sync", "source")
"""The register that says which source a thing came from."""
MARK_BYTES = 8
_RUN_STATUS = (None, "RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
_NOWHERE = Stamp(0, "")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def milliseconds(time: datetime | None) -> str | None:
    """A time of a row as registers hold it."""
    return None if time is None else str((time - _EPOCH) // timedelta(milliseconds=1))


def experiment(row: Row) -> Registers:
    """The registers of a row of `experiments_latest`."""
    times = {"created": row["create_time"], "updated": row["update_time"], "deleted": row["delete_time"]}
    attrs = {key: milliseconds(time) for key, time in times.items()}
    attrs["created"] = attrs["created"] or attrs["updated"] or "0"
    attrs |= {"name": row["name"], "artifact_location": row["artifact_location"], "lifecycle_stage": _stage(row)}
    return _attrs(attrs) | _pairs("tag", row["tags"])


def run(row: Row) -> Registers:
    """The registers of a row of `runs_latest`."""
    times = {"start_time": row["start_time"], "end_time": row["end_time"], "deleted": row["delete_time"]}
    attrs = {key: milliseconds(time) for key, time in times.items()}
    attrs["created"] = attrs["start_time"] or "0"
    if row["status"] not in _RUN_STATUS:
        raise InvalidInput(f"Its status {row['status']!r:.40} is none of {', '.join(filter(None, _RUN_STATUS))}.")
    attrs |= {key: row[key] for key in ("experiment_id", "run_name", "status", "artifact_uri")}
    attrs |= {"created_by": row["created_by"] or "", "lifecycle_stage": _stage(row)}
    found = _attrs(attrs) | _pairs("param", row["params"]) | _pairs("tag", row["tags"])
    for order, data in enumerate(row["datasets"] or ()):
        value = {name: data[name] for name in ("name", "digest", "source_type", "source", "schema", "profile")}
        value |= {"tags": dict(data["tags"] or ()), "order": order}
        found["dataset", f"{data['digest']}/{data['name']}"] = json.dumps(value)
    found |= {("model_input", model): "" for model in row["model_inputs"] or ()}
    return found | {("model_output", link["model_id"]): str(link["step"]) for link in row["model_outputs"] or ()}


def logged_model(row: Row) -> Registers:
    """The registers of a row of `logged_models_latest`."""
    times = {"created": row["create_time"], "updated": row["update_time"], "deleted": row["delete_time"]}
    names = ("experiment_id", "name", "model_type", "source_run_id", "status", "status_message", "artifact_uri", "lifecycle_stage")
    attrs = {key: milliseconds(time) for key, time in times.items()} | {key: row[key] for key in names}
    return _attrs(attrs) | _pairs("param", row["params"]) | _pairs("tag", row["tags"])


def registered_model(row: Row) -> Registers:
    """The registers of a row of `registered_models_latest`."""
    attrs = {"created": milliseconds(row["create_time"]), "updated": milliseconds(row["update_time"]), "description": row["description"]}
    aliases = {("alias", alias): str(version) for alias, version in row["aliases"] or ()}
    return _attrs(attrs) | _pairs("tag", row["tags"]) | aliases


def model_version(row: Row) -> Registers:
    """The registers of a row of `model_versions_latest`."""
    names = ("description", "created_by", "current_stage", "source", "storage_location", "run_id", "run_link", "model_id", "status")
    attrs = {"created": milliseconds(row["create_time"]), "updated": milliseconds(row["update_time"])}
    attrs |= {key: row[key] for key in (*names, "status_message")}
    return _attrs(attrs) | _pairs("tag", row["tags"])


OF_ROW: Mapping[str, Callable[[Row], Registers]] = {
    "experiment": experiment,
    "run": run,
    "logged_model": logged_model,
    "registered_model": registered_model,
    "model_version": model_version,
}


def entity(kind: str, id: str, row: Row) -> Entity:
    """What a server has, as a lake would hold it, so that both are compared in one way."""
    found: dict[str, dict[str, Register]] = {"attr": {"created": Register(_NOWHERE, "0")}}
    for (field, key), value in OF_ROW[kind](row).items():
        if value is not None:
            found.setdefault(field, {})[key] = Register(_NOWHERE, value)
    return Entity(kind, id, found)


def mark(field: str, key: str, value: str) -> bytes:
    """The digest by which the base remembers a value."""
    return blake2b(f"{field}\x00{key}\x00{value}".encode("utf-8", "surrogatepass"), digest_size=MARK_BYTES).digest()


def marks(wanted: Registers) -> bytes:
    """The base that a sync leaves behind. Params never change, so they need none."""
    return b"".join(sorted(mark(field, key, value) for (field, key), value in wanted.items() if value is not None and field != "param"))


def split_marks(packed: bytes | None) -> frozenset[bytes]:
    """The inverse of `marks`."""
    packed = packed or b""
    return frozenset(packed[i : i + MARK_BYTES] for i in range(0, len(packed), MARK_BYTES))


def changes(kind: str, id: str, wanted: Registers, there: Entity | None, base: Collection[bytes]) -> Iterator[Event]:
    """The events that bring the lake's thing up to its source.

    Args:
        wanted: what the source says.
        there: what the lake has.
        base: the marks of what the last sync saw.
    """
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
        return str(of_stamp(hlc) if hlc else now())
    return None if fields and mark("attr", "lifecycle_stage", "deleted") in base else str(now())


def _is_news(wanted: Registers, fields: Mapping[str, Any], base: Collection[bytes]) -> bool:
    """Whether the source's stage is about to become the lake's."""
    stage = wanted["attr", "lifecycle_stage"] or ""
    return _current(fields, "attr", "lifecycle_stage") != stage and mark("attr", "lifecycle_stage", stage) not in base


def _stage(row: Row) -> str:
    """The only two stages that MLflow can show."""
    return "deleted" if row["lifecycle_stage"] == "deleted" else "active"


def _current(fields: Mapping[str, Any], field: str, key: str) -> str | None:
    register = fields.get(field, {}).get(key)
    return None if register is None else register.value


def _attrs(values: Mapping[str, str | None]) -> Registers:
    return {("attr", key): value for key, value in values.items()}


def _pairs(field: str, items: Any) -> Registers:
    return {(field, key): value for key, value in items or ()}
