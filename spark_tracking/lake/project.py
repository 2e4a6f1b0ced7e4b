"""Entities as rows of the derived tables: one function a kind, from folded state to columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import orjson
import pyarrow as pa

from spark_tracking.lake.clock import milliseconds
from spark_tracking.lake.state import Entity, ModelPoint
from spark_tracking.lake.tables import BY_KIND

Row = dict[str, Any]
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FIRST, _LAST = ((end.replace(tzinfo=timezone.utc) - _EPOCH) // timedelta(milliseconds=1) for end in (datetime.min, datetime.max))


def rows(kind: str, entities: Iterable[Entity]) -> pa.Table:
    """The rows of those entities that exist, sorted by key, in the schema of the kind's derived table."""
    spec = BY_KIND[kind]
    project = _PROJECTIONS[kind]
    shown = sorted((e for e in entities if e.exists), key=lambda e: e.id)
    projected = [{**project(e), "state": e.pack()} for e in shown]
    columns = [pa.array([row.get(f.name) for row in projected], f.type) for f in spec.schema]
    return pa.Table.from_arrays(columns, schema=spec.schema)


def _experiment(e: Entity) -> Row:
    return {
        "update_time": _time(e.number("updated")),
        "delete_time": _time(e.number("deleted")) if e.deleted else None,
        "experiment_id": e.id,
        "name": e.attr("name"),
        "create_time": _time(e.number("created")),
        "artifact_location": e.attr("artifact_location"),
        "lifecycle_stage": e.attr("lifecycle_stage"),
        "tags": _pairs(e.items("tag")),
    }


def _run(e: Entity) -> Row:
    return {
        "update_time": _time(_last_change(e)),
        "delete_time": _time(e.number("deleted")) if e.deleted else None,
        "run_id": e.id,
        **{name: e.attr(name) for name in ("experiment_id", "created_by", "run_name", "status")},
        "start_time": _time(e.number("start_time")),
        "end_time": _time(e.number("end_time")),
        "params": _pairs(e.items("param")),
        "tags": _pairs(e.items("tag")),
        "aggregated_metrics": [
            {"metric_name": n, "min_value": m.minimum, "max_value": m.maximum, "latest_value": m.latest.value}
            for n, m in sorted(e.metrics.items())
        ],
        "artifact_uri": e.attr("artifact_uri"),
        "lifecycle_stage": e.attr("lifecycle_stage"),
        "metrics": [(n, m.latest.value) for n, m in sorted(e.metrics.items())],
        "datasets": sorted(map(_dataset, e.items("dataset").values()), key=lambda dataset: dataset.pop("order", 0)),
        "model_inputs": list(e.items("model_input")),
        "model_outputs": [{"model_id": k, "step": int(v)} for k, v in e.items("model_output").items()],
    }


def _logged_model(e: Entity) -> Row:
    texts = ("experiment_id", "name", "model_type", "source_run_id", "status", "status_message")
    return {
        "update_time": _time(e.number("updated")),
        "delete_time": _time(e.number("deleted")) if e.deleted else None,
        "model_id": e.id,
        **{name: e.attr(name) for name in (*texts, "artifact_uri", "lifecycle_stage")},
        "create_time": _time(e.number("created")),
        "params": _pairs(e.items("param")),
        "tags": _pairs(e.items("tag")),
        "metrics": [
            {
                "metric_name": p.name,
                "value": value,
                "step": p.step,
                "metric_time": _time(p.time),
                "run_id": p.run_id,
                "dataset_name": p.dataset_name,
                "dataset_digest": p.dataset_digest,
            }
            for p, value in sorted(e.points.items(), key=lambda item: _order(item[0]))
        ],
    }


def _registered_model(e: Entity) -> Row:
    return {
        "update_time": _time(e.number("updated")),
        "name": e.id,
        "create_time": _time(e.number("created")),
        "description": e.attr("description"),
        "tags": _pairs(e.items("tag")),
        "aliases": [(alias, int(version)) for alias, version in e.items("alias").items()],
    }


def _model_version(e: Entity) -> Row:
    name, version = e.id.rsplit("/", 1)
    texts = ("description", "created_by", "current_stage", "source", "storage_location", "run_id", "run_link")
    return {
        "update_time": _time(e.number("updated")),
        "name": name,
        "version": int(version),
        "create_time": _time(e.number("created")),
        **{key: e.attr(key) for key in (*texts, "model_id", "status", "status_message")},
        "tags": _pairs(e.items("tag")),
        "version_id": e.id,
    }


_PROJECTIONS: Mapping[str, Callable[[Entity], Row]] = {
    "experiment": _experiment,
    "run": _run,
    "logged_model": _logged_model,
    "registered_model": _registered_model,
    "model_version": _model_version,
}


def _time(ms: int | None) -> datetime | None:
    """A time of the calendar; what lies beyond it (microseconds taken for milliseconds) is its last, or first, moment."""
    return None if ms is None else _EPOCH + timedelta(milliseconds=min(max(ms, _FIRST), _LAST))


def _order(p: ModelPoint) -> tuple[str | int, ...]:
    return p.name, p.step, p.time, p.run_id, p.dataset_name or "", p.dataset_digest or ""


def _pairs(items: Mapping[str, str]) -> list[tuple[str, str]]:
    return list(items.items())


def _dataset(text: str) -> Row:
    row: Row = orjson.loads(text)
    row["tags"] = list((row.get("tags") or {}).items())
    return row


def _last_change(e: Entity) -> int:
    stamps = (r.stamp.hlc for registers in e.fields.values() for r in registers.values())
    newest_point = max((m.latest.time for m in e.metrics.values()), default=0)
    return max(milliseconds(max(stamps, default=0)), newest_point if newest_point < 1 << 43 else 0)
