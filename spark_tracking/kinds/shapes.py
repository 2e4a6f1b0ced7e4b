"""How a fact of a thing stands in each place: registers of the log, table cells, MLflow's classes, its REST pages and its database.

A register is `(field, key)`, see `kinds.state`; a cell is what `to_pylist` gives for the column.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.errors import InvalidInput
from spark_tracking.kinds.state import Entity, ModelPoint, time_of

Registers = dict[tuple[str, str], str | None]
STRING, NUMBER = pa.string(), pa.int64()
TIMESTAMP = pa.timestamp("us", tz="UTC")
STRINGS = pa.map_(STRING, STRING)
METRICS = pa.map_(STRING, pa.float64())
ALIASES = pa.map_(STRING, NUMBER)
MODEL_STATUSES = ("UNSPECIFIED", "PENDING", "READY", "FAILED")
"""Of a logged model, as MLflow's database numbers them."""
PAGE_STATUSES = {"LOGGED_MODEL_PENDING": "PENDING", "LOGGED_MODEL_READY": "READY", "LOGGED_MODEL_UPLOAD_FAILED": "FAILED"}
RUN_STATUSES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
DATASET = ("name", "digest", "source_type", "source", "schema", "profile")
"""What describes a data set, in MLflow's entity, its REST pages and a register's JSON text alike."""
DATASETS = pa.list_(pa.struct([*((name, STRING) for name in DATASET), ("tags", STRINGS)]))
AGGREGATES = pa.list_(pa.struct([("metric_name", STRING), *((name, pa.float64()) for name in ("min_value", "max_value", "latest_value"))]))
MODEL_METRICS = pa.list_(
    pa.struct(
        [
            ("metric_name", STRING),
            ("value", pa.float64()),
            ("step", NUMBER),
            ("metric_time", TIMESTAMP),
            ("run_id", STRING),
            ("dataset_name", STRING),
            ("dataset_digest", STRING),
        ]
    )
)
LINKS = pa.list_(pa.struct([("model_id", STRING), ("step", NUMBER)]))

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MILLISECOND = timedelta(milliseconds=1)
_FIRST, _LAST = ((end.replace(tzinfo=timezone.utc) - _EPOCH) // _MILLISECOND for end in (datetime.min, datetime.max))


def moment(milliseconds: int | None) -> datetime | None:
    """A time of the calendar; what lies beyond it (microseconds taken for milliseconds) is its last, or first, moment."""
    return None if milliseconds is None else _EPOCH + timedelta(milliseconds=min(max(milliseconds, _FIRST), _LAST))


def milliseconds(time: datetime | None) -> int:
    """The inverse of `moment`: since the epoch, rounded down; 0 for none."""
    return 0 if time is None else (time - _EPOCH) // _MILLISECOND


def time_in_years(value: Any) -> int:
    """A time of a REST page, in milliseconds since 1970.

    Raises:
        ValueError, TypeError, OverflowError: it is none, or not within the years 1 to 9999.
    """
    found = int(value)
    if not _FIRST <= found <= _LAST:
        raise ValueError(f"the time {value} is not within the years 1 to 9999")
    return found


def times(column: pa.Array) -> pa.Array:
    """Milliseconds since 1970 as times.

    Raises:
        ValueError: one lies outside of the years that can be shown.
    """
    column = column.cast(NUMBER)
    for end in pc.min_max(column).as_py().values():
        if end is not None:
            time_in_years(end)
    return pc.multiply(column, 1000).cast(TIMESTAMP)


def text_column(values: Iterable[Any]) -> pa.Array:
    """Texts of REST pages, which say nothing in two ways."""
    return pa.array([None if value == "" else value for value in values], STRING)


def time_column(values: Iterable[Any]) -> pa.Array:
    """Times of REST pages, which come as numbers and as texts."""
    return times(pa.array([None if value in (None, "") else time_in_years(value) for value in values], NUMBER))


class Shape(NamedTuple):
    """One way in which facts stand. Functions of an entity or a cell get the column's register: a key of `attr`, or a field of many keys.

    Attributes:
        type: of the column.
        cell: the cell that an entity's state makes.
        registers: the registers that a cell makes; none for what is told by others.
        fact: what MLflow's classes take for it; None: they don't, or as objects of a class of their own.
        from_page: the column that JSON values make, None for what is not told; raises what fits where one is malformed.
        needed: whether a page without it is malformed.
        stored, from_database: as what MLflow's database stores it, and the column that this makes.
    """

    type: pa.DataType
    cell: Callable[[Entity, str], Any]
    registers: Callable[[Any, str], Registers] = lambda cell, register: {}
    fact: Callable[[Entity, str], Any] | None = None
    from_page: Callable[[Sequence[Any]], pa.Array] = text_column
    needed: bool = False
    stored: pa.DataType = STRING
    from_database: Callable[[pa.Array], pa.Array] = lambda column: column


def _number(cell: Any, register: str) -> Registers:
    return {("attr", register): None if cell is None else str(cell)}


def _time(cell: datetime | None, register: str) -> Registers:
    return _number(None if cell is None else milliseconds(cell), register)


def _pairs(cell: Iterable[tuple[str, Any]] | None, register: str) -> Registers:
    return {(register, key): value if value is None else str(value) for key, value in cell or ()}


def _run_status(cell: str | None, register: str) -> Registers:
    if cell is not None and cell not in RUN_STATUSES:
        raise InvalidInput(f"Its status {cell!r:.40} is none of {', '.join(RUN_STATUSES)}.")
    return {("attr", register): cell}


def version_id(name: str, version: int | str) -> str:
    """The id of a model version in the lake."""
    return f"{name}/{version}"


def split_version_id(id: str) -> tuple[str, int]:
    """The inverse of `version_id`."""
    name, _, version = id.rpartition("/")
    return name, int(version)


# -- data sets: JSON texts in registers -------------------------------------------------------------------------


def dataset_register(described: Any, tags: dict[str, str], order: int = 0) -> tuple[str, str]:
    """The key and the value of a data set's register.

    Args:
        described: gives each of `DATASET` by name.
        order: how many data sets the run had logged before.
    """
    value = {**{name: described[name] for name in DATASET}, "tags": tags, "order": order}
    return f"{described['digest']}/{described['name']}", json.dumps(value)


def datasets_in_order(entity: Entity) -> list[dict[str, Any]]:
    """Data sets as they were logged; those of lakes that did not note it yet by their keys."""
    return sorted(map(orjson.loads, entity.items("dataset").values()), key=lambda one: one.get("order", 0))


def _datasets(entity: Entity, _: str) -> list[dict[str, Any]]:
    return [{**{n: one[n] for n in DATASET}, "tags": list((one.get("tags") or {}).items())} for one in datasets_in_order(entity)]


def _dataset_registers(cell: Iterable[dict[str, Any]] | None, _: str) -> Registers:
    made = (dataset_register(one, dict(one["tags"] or ()), order) for order, one in enumerate(cell or ()))
    return {("dataset", key): value for key, value in made}


# -- what is folded from points ---------------------------------------------------------------------------------


def point_order(p: ModelPoint) -> tuple[str | int, ...]:
    """The order of a logged model's points in its row."""
    return p.name, p.step, p.time, p.run_id, p.dataset_name or "", p.dataset_digest or ""


def _aggregates(entity: Entity, _: str) -> list[dict[str, Any]]:
    return [
        {"metric_name": name, "min_value": m.minimum, "max_value": m.maximum, "latest_value": m.latest.value}
        for name, m in sorted(entity.metrics.items())
    ]


def _model_metrics(entity: Entity, _: str) -> list[dict[str, Any]]:
    return [
        {**p._asdict(), "metric_name": p.name, "metric_time": moment(p.time), "value": entity.points[p]}
        for p in sorted(entity.points, key=point_order)
    ]


def _last_change(entity: Entity, _: str) -> datetime | None:
    stamps = (r.stamp for registers in entity.fields.values() for r in registers.values())
    newest_point = max((m.latest.time for m in entity.metrics.values()), default=0)
    changed = max((stamp.hlc for stamp in stamps), default=0)
    return moment(max(time_of(changed), newest_point if newest_point < 1 << 43 else 0))


# -- from REST pages --------------------------------------------------------------------------------------------


def _maps(type: pa.MapType, items: Sequence[Any], key: str = "key", convert: Callable[[Any], Any] | None = None) -> pa.Array:
    """Lists of {"key": …, "value": …} as maps, sorted by key; an alias is a key, too, and its version the value."""
    value, in_bytes = ("version", _alias) if key == "alias" else ("value", _key)
    ordered = [sorted(item, key=in_bytes) if item else () for item in items]
    flat = [pair for item in ordered for pair in item]
    values = [pair.get(value, "") for pair in flat] if convert is None else [convert(pair[value]) for pair in flat]
    offsets = pa.array([0, *accumulate(map(len, ordered))], pa.int32())
    return pa.MapArray.from_arrays(offsets, pa.array([pair[key] for pair in flat], STRING), pa.array(values, type.item_type))


def _key(pair: Any) -> bytes:
    key: str = pair["key"]
    return key.encode("utf-8", "surrogatepass")


def _alias(pair: Any) -> bytes:
    return _key({"key": pair["alias"]})


def _page_aggregates(items: Sequence[Any]) -> pa.Array:
    """Over REST the least and greatest values are not told."""
    in_order = (sorted(metrics or (), key=_key) for metrics in items)
    return pa.array([[{"metric_name": m["key"], "latest_value": float(m["value"])} for m in metrics] for metrics in in_order], AGGREGATES)


def _page_datasets(items: Sequence[Any]) -> pa.Array:
    rows = [
        [
            {name: use["dataset"].get(name) for name in DATASET} | {"tags": sorted((t["key"], t["value"]) for t in use.get("tags", ()))}
            for use in uses or ()
        ]
        for uses in items
    ]
    return pa.array([sorted(uses, key=itemgetter("name", "digest")) for uses in rows], DATASETS)


def _page_points(items: Sequence[Any]) -> pa.Array:
    def row(m: Any) -> dict[str, Any]:
        told = {name: m.get(name) for name in ("run_id", "dataset_name", "dataset_digest")}
        time = time_in_years(m["timestamp"]) * 1000
        return {"metric_name": m["key"], "value": float(m["value"]), "step": int(m.get("step", 0)), "metric_time": time, **told}

    in_order = itemgetter("metric_name", "step", "metric_time")
    return pa.array([sorted(map(row, metrics or ()), key=in_order) for metrics in items], MODEL_METRICS)


def _page_links(items: Sequence[Any]) -> pa.Array:
    found = [None if links is None else [{"model_id": m["model_id"], "step": int(m.get("step", 0))} for m in links] for links in items]
    return pa.array(found, LINKS)


# -- the shapes -------------------------------------------------------------------------------------------------

UNKNOWN = Shape(STRING, lambda entity, _: None)
ID = Shape(STRING, lambda entity, _: entity.id, fact=lambda entity, _: entity.id, needed=True)
VERSIONED_NAME = Shape(STRING, lambda e, _: split_version_id(e.id)[0], fact=lambda e, _: split_version_id(e.id)[0], needed=True)
VERSION = Shape(
    NUMBER,
    lambda e, _: split_version_id(e.id)[1],
    fact=lambda e, _: split_version_id(e.id)[1],
    from_page=lambda values: pa.array([int(value) for value in values], NUMBER),
    stored=NUMBER,
)
TEXT = Shape(STRING, Entity.attr, lambda cell, register: {("attr", register): cell}, Entity.attr)
NEEDED = TEXT._replace(needed=True)
DESCRIPTION = TEXT._replace(from_database=lambda column: pc.if_else(pc.equal(column, ""), None, column))
TIME = Shape(
    TIMESTAMP,
    lambda entity, register: moment(entity.number(register)),
    _time,
    Entity.number,
    from_page=time_column,
    stored=NUMBER,
    from_database=times,
)
STAGE = TEXT._replace(
    registers=lambda cell, register: {("attr", register): "deleted" if cell == "deleted" else "active"},
    from_page=lambda values: text_column(value or "active" for value in values),
)
"""The only two stages that MLflow can show; whose pages don't tell it show no deleted ones."""
RUN_STATUS = TEXT._replace(registers=_run_status)
MODEL_STATUS = TEXT._replace(
    from_page=lambda values: text_column(PAGE_STATUSES.get(value, MODEL_STATUSES[0]) for value in values),
    stored=NUMBER,
    from_database=lambda column: pa.array(MODEL_STATUSES).take(column),
)
USER = TEXT._replace(registers=lambda cell, register: {("attr", register): cell or ""})
DELETION = TIME._replace(cell=lambda e, register: moment(e.number(register)) if e.deleted else None, fact=None)
"""Of what is in the trash, whatever else stands in the column that tells it."""
LAST_CHANGE = Shape(TIMESTAMP, _last_change)
PAIRS = Shape(STRINGS, lambda entity, field: list(entity.items(field).items()), _pairs, from_page=partial(_maps, STRINGS))
NUMBERED = Shape(
    ALIASES,
    lambda entity, field: [(key, int(number)) for key, number in entity.items(field).items()],
    _pairs,
    from_page=partial(_maps, ALIASES, key="alias", convert=int),
)
LATEST_VALUES = Shape(
    METRICS,
    lambda entity, _: [(name, m.latest.value) for name, m in sorted(entity.metrics.items())],
    from_page=partial(_maps, METRICS, convert=float),
)
AGGREGATED = Shape(AGGREGATES, _aggregates, from_page=_page_aggregates)
MEASURED = Shape(MODEL_METRICS, _model_metrics, from_page=_page_points)
DATA = Shape(DATASETS, _datasets, _dataset_registers, from_page=_page_datasets)
MODELS = Shape(
    pa.list_(STRING),
    lambda e, field: list(e.items(field)),
    lambda cell, field: {(field, model): "" for model in cell or ()},
    from_page=lambda items: pa.array([links and [m["model_id"] for m in links] for links in items], pa.list_(STRING)),
)
STEPPED_MODELS = Shape(
    LINKS,
    lambda entity, field: [{"model_id": key, "step": int(step)} for key, step in entity.items(field).items()],
    lambda cell, field: {(field, link["model_id"]): str(link["step"]) for link in cell or ()},
    from_page=_page_links,
)
