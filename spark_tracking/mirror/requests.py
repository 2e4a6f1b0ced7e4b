"""Events as requests to MLflow's REST API: one table of which change of which thing goes where."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from spark_tracking.kinds.shapes import DATASET, PAGE_STATUSES, split_version_id
from spark_tracking.lake import Event

POINTS_A_REQUEST, _AT_ONCE = 900, 100
"""`runs/log-batch` takes 1000 of all at once, 100 params and tags."""
_STATUSES = {status: name for name, status in PAGE_STATUSES.items() if status != "PENDING"}


class Request(NamedTuple):
    """What is sent."""

    method: str
    path: str
    body: Mapping[str, Any]


class _Way(NamedTuple):
    """How changes of one kind of thing are sent: those of some fields or attributes that are set, or removed, or both (None)."""

    kind: str
    what: tuple[str, ...]
    is_set: bool | None
    method: str
    path: str
    body: Callable[[list[Event]], Mapping[str, Any] | None]
    at_once: int = 1


def pairs(items: Iterable[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Keys and values as the API takes them."""
    return [{"key": key, "value": value} for key, value in items]


def _dataset(event: Event) -> dict[str, Any]:
    data = json.loads(event.value or "")
    described = {name: data[name] for name in DATASET if data[name] is not None}
    return {"dataset": described, "tags": pairs(data["tags"].items())}


def _inputs(events: list[Event]) -> dict[str, Any]:
    data, models = ([e for e in events if e.field == field] for field in ("dataset", "model_input"))
    return {"datasets": list(map(_dataset, data)), "models": [{"model_id": e.key} for e in models]}


def _outputs(events: list[Event]) -> dict[str, Any]:
    return {"models": [{"model_id": e.key, "step": int(e.value or 0)} for e in events]}


def _status(events: list[Event]) -> dict[str, Any] | None:
    name = _STATUSES.get(events[0].value or "")
    return None if name is None else {"status": name}


def _stage(events: list[Event]) -> dict[str, Any]:
    return {"stage": events[0].value, "archive_existing_versions": False}


def _info(events: list[Event]) -> dict[str, Any] | None:
    return {e.key: e.value for e in events if e.value} or None


def _listed(name: str) -> Callable[[list[Event]], dict[str, Any]]:
    return lambda events: {name: pairs((e.key, e.value or "") for e in events)}


def _one(**names: str) -> Callable[[list[Event]], dict[str, Any]]:
    """A body that gives the key, or the value, of an event by the API's names."""
    return lambda events: {name: getattr(events[0], part) or "" for name, part in names.items()}


_E, _R, _L, _M, _V = "experiment", "run", "logged_model", "registered_model", "model_version"
_ALL = 1 << 30
_WAYS = (
    _Way(_E, ("tag",), True, "POST", "experiments/set-experiment-tag", _one(key="key", value="value")),
    _Way(_E, ("tag",), False, "POST", "experiments/delete-experiment-tag", _one(key="key")),
    _Way(_E, ("name",), True, "POST", "experiments/update", _one(new_name="value")),
    _Way(_E, ("lifecycle_stage",), True, "POST", "experiments/restore", _one()),
    _Way(_R, ("dataset", "model_input"), True, "POST", "runs/log-inputs", _inputs, _ALL),
    _Way(_R, ("model_output",), True, "POST", "runs/outputs", _outputs, _ALL),
    _Way(_R, ("status", "end_time", "run_name"), True, "POST", "runs/update", _info, _ALL),
    _Way(_R, ("tag",), False, "POST", "runs/delete-tag", _one(key="key")),
    _Way(_R, ("param",), True, "POST", "runs/log-batch", _listed("params"), _AT_ONCE),
    _Way(_R, ("tag",), True, "POST", "runs/log-batch", _listed("tags"), _AT_ONCE),
    _Way(_L, ("param",), True, "POST", "logged-models/{id}/params", _listed("params"), _AT_ONCE),
    _Way(_L, ("tag",), True, "PATCH", "logged-models/{id}/tags", _listed("tags"), _AT_ONCE),
    _Way(_L, ("tag",), False, "DELETE", "logged-models/{id}/tags/{key}", _one()),
    _Way(_L, ("status",), True, "PATCH", "logged-models/{id}", _status),
    _Way(_M, ("tag",), True, "POST", "registered-models/set-tag", _one(key="key", value="value")),
    _Way(_M, ("tag",), False, "DELETE", "registered-models/delete-tag", _one(key="key")),
    _Way(_M, ("description",), None, "PATCH", "registered-models/update", _one(description="value")),
    _Way(_M, ("alias",), True, "POST", "registered-models/alias", _one(alias="key", version="value")),
    _Way(_M, ("alias",), False, "DELETE", "registered-models/alias", _one(alias="key")),
    _Way(_V, ("tag",), True, "POST", "model-versions/set-tag", _one(key="key", value="value")),
    _Way(_V, ("tag",), False, "DELETE", "model-versions/delete-tag", _one(key="key")),
    _Way(_V, ("description",), None, "PATCH", "model-versions/update", _one(description="value")),
    _Way(_V, ("current_stage",), None, "POST", "model-versions/transition-stage", _stage),
)
_DELETIONS = {
    _E: ("POST", "experiments/delete"),
    _R: ("POST", "runs/delete"),
    _L: ("DELETE", "logged-models/{id}"),
    _M: ("DELETE", "registered-models/delete"),
    _V: ("DELETE", "model-versions/delete"),
}


def _named(kind: str, id: str) -> dict[str, str]:
    """What names a thing in a request."""
    if kind == _V:
        name, version = split_version_id(id)
        return {"name": name, "version": str(version)}
    return {{_E: "experiment_id", _R: "run_id", _L: "model_id", _M: "name"}[kind]: id}


def requests(events: Sequence[Event]) -> Iterator[Request]:
    """What brings changes of one thing about. Tags of a run go last; what a server keeps to itself is left out."""
    for way in _WAYS:
        mine = [e for e in events if e.kind == way.kind and way.is_set in (None, e.value is not None)]
        mine = [e for e in mine if (e.key if e.field == "attr" else e.field) in way.what]
        for start in range(0, len(mine), way.at_once):
            some = mine[start : start + way.at_once]
            body = way.body(some)
            if body is not None:
                yield Request(way.method, _path(way.path, some[0].id, some[0].key), {**_named(way.kind, some[0].id), **body})


def deletion(kind: str, id: str) -> Request:
    """What deletes a thing."""
    method, path = _DELETIONS[kind]
    return Request(method, _path(path, id), _named(kind, id))


def _path(path: str, id: str, key: str = "") -> str:
    """A path with what a source says in it, which leads nowhere else."""
    return path.format(id=quote(id, safe=""), key=quote(key, safe=""))


def restoration(kind: str, id: str) -> Request:
    """What takes an experiment or a run out of the trash."""
    return Request("POST", f"{kind}s/restore", _named(kind, id))


def metric(name: str, value: float, time: int, step: int, of: Mapping[str, str | None]) -> dict[str, Any]:
    """A point as `runs/log-batch` takes it; `of`: the model and data set it was logged for."""
    shown: Any = value
    if not math.isfinite(value):
        shown = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    told = {key: text for key, text in of.items() if text is not None}
    return {"key": name, "value": shown, "timestamp": time, "step": step, **told}
