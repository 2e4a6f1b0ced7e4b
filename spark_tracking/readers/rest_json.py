"""Pages of MLflow's REST API as columns. Format: https://mlflow.org/docs/latest/rest-api.html"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa

from spark_tracking.kinds import shapes
from spark_tracking.readers.assemble import FIRST_TIME, LAST_TIME, times
from spark_tracking.readers.schemas import TABLES

Json = Mapping[str, Any]
_STRINGS = shapes.STRINGS
_MODEL_STATUS = {"LOGGED_MODEL_PENDING": "PENDING", "LOGGED_MODEL_READY": "READY", "LOGGED_MODEL_UPLOAD_FAILED": "FAILED"}


def runs(page: Sequence[Json], table: str) -> pa.RecordBatch:
    """Runs as rows of `runs` or `runs_latest`."""
    infos, data = [run["info"] for run in page], [run.get("data") or {} for run in page]
    metrics = [d.get("metrics", ()) for d in data]
    columns = {
        **{name: _ids(infos, name) for name in ("run_id", "experiment_id")},
        **{name: _texts(infos, name) for name in ("status", "artifact_uri", "run_name", "lifecycle_stage")},
        "created_by": _texts(infos, "user_id"),
        "start_time": _times(infos, "start_time"),
        "end_time": _times(infos, "end_time"),
        "metrics": pairs(metrics, pa.float64(), float),
        "params": pairs([d.get("params", ()) for d in data]),
        "tags": pairs([d.get("tags", ()) for d in data]),
    }
    if table != "runs":
        inputs = [run.get("inputs", {}) for run in page]  # without models: a search does not tell them
        columns |= {
            "aggregated_metrics": pa.array([_aggregates(m) for m in metrics], shapes.AGGREGATES),
            "datasets": pa.array([_datasets(i.get("dataset_inputs", ())) for i in inputs], shapes.DATASETS),
        }
    return batch(table, columns, len(page))


def points(run: Json, name: str, page: Sequence[Json]) -> pa.RecordBatch:
    """Points of one metric of a run as rows of `run_metrics_history`."""
    info = run["info"]
    columns = {
        "run_id": pa.array([info["run_id"]] * len(page), pa.string()),
        "experiment_id": pa.array([info["experiment_id"]] * len(page), pa.string()),
        "metric_name": pa.array([name] * len(page), pa.string()),
        "metric_time": _times(page, "timestamp"),
        "metric_step": pa.array([int(p.get("step", 0)) for p in page], pa.int64()),
        "metric_value": pa.array([float(p["value"]) for p in page], pa.float64()),
    }
    return batch("run_metrics_history", columns, len(page))


def experiments(page: Sequence[Json]) -> pa.RecordBatch:
    """Rows of `experiments_latest`."""
    deleted = [{"at": e.get("last_update_time")} if e.get("lifecycle_stage") == "deleted" else {} for e in page]
    columns = {
        **{name: _ids(page, name) for name in ("experiment_id", "name")},
        **{name: _texts(page, name) for name in ("artifact_location", "lifecycle_stage")},
        "create_time": _times(page, "creation_time"),
        "update_time": _times(page, "last_update_time"),
        "delete_time": _times(deleted, "at"),
        "tags": pairs([e.get("tags", ()) for e in page]),
    }
    return batch("experiments_latest", columns, len(page))


def logged_models(page: Sequence[Json]) -> pa.RecordBatch:
    """Rows of `logged_models_latest`."""
    infos, data = [model["info"] for model in page], [model.get("data") or {} for model in page]
    columns = {
        **{name: _ids(infos, name) for name in ("model_id", "experiment_id")},
        **{name: _texts(infos, name) for name in ("name", "model_type", "source_run_id", "status_message", "artifact_uri")},
        "status": pa.array([_MODEL_STATUS.get(info.get("status"), "UNSPECIFIED") for info in infos], pa.string()),
        "lifecycle_stage": pa.array(["active"] * len(page), pa.string()),  # the server shows no others
        "create_time": _times(infos, "creation_timestamp_ms"),
        "update_time": _times(infos, "last_updated_timestamp_ms"),
        "params": pairs([d.get("params", ()) for d in data]),
        "tags": pairs([i.get("tags", ()) for i in infos]),
        "metrics": _model_metrics([d.get("metrics", ()) for d in data]),
    }
    return batch("logged_models_latest", columns, len(page))


def registered_models(page: Sequence[Json]) -> pa.RecordBatch:
    """Rows of `registered_models_latest`."""
    aliases = [[{"key": a["alias"], "value": a["version"]} for a in m.get("aliases", ())] for m in page]
    columns = {
        "name": _ids(page, "name"),
        "description": _texts(page, "description"),
        "create_time": _times(page, "creation_timestamp"),
        "update_time": _times(page, "last_updated_timestamp"),
        "tags": pairs([m.get("tags", ()) for m in page]),
        "aliases": pairs(aliases, pa.int64(), int),
    }
    return batch("registered_models_latest", columns, len(page))


def model_versions(page: Sequence[Json]) -> pa.RecordBatch:
    """Rows of `model_versions_latest`."""
    texts = ("description", "current_stage", "source", "run_id", "run_link", "status", "status_message", "model_id")
    columns = {
        "name": _ids(page, "name"),
        **{name: _texts(page, name) for name in texts},
        "created_by": _texts(page, "user_id"),
        "version": pa.array([int(v["version"]) for v in page], pa.int64()),
        "create_time": _times(page, "creation_timestamp"),
        "update_time": _times(page, "last_updated_timestamp"),
        "tags": pairs([v.get("tags", ()) for v in page]),
    }
    return batch("model_versions_latest", columns, len(page))


def batch(table: str, columns: Mapping[str, pa.Array], rows: int) -> pa.RecordBatch:
    """The table's columns in their order and type; null where there are none of that name."""
    schema = TABLES[table].schema
    arrays = [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(rows, f.type) for f in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def pairs(items: Iterable[Iterable[Json]], type_: pa.DataType = shapes.STRING, convert: Callable[[Any], Any] | None = None) -> pa.Array:
    """Lists of {"key": …, "value": …} as maps, sorted by key."""
    ordered = [sorted(item, key=_key) if item else () for item in items]
    flat = [pair for item in ordered for pair in item]
    values = [pair.get("value", "") for pair in flat] if convert is None else [convert(pair["value"]) for pair in flat]
    offsets = [0, *accumulate(map(len, ordered))]
    keys = pa.array([pair["key"] for pair in flat], pa.string())
    return pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), keys, pa.array(values, type_))


def _key(pair: Json) -> bytes:
    key: str = pair["key"]
    return key.encode("utf-8", "surrogatepass")


def _texts(items: Sequence[Json], name: str) -> pa.Array:
    return pa.array([None if (value := item.get(name)) == "" else value for item in items], pa.string())


def _ids(items: Sequence[Json], name: str) -> pa.Array:
    found = _texts(items, name)
    if found.null_count:
        raise ValueError(f"its {name} is missing")
    return found


def _times(items: Sequence[Json], name: str) -> pa.Array:
    return times(pa.array([None if (value := item.get(name)) in (None, "") else time(value) for item in items], pa.int64()))


def time(value: Any) -> int:
    """Milliseconds since 1970 that a table can hold.

    Raises:
        ValueError, TypeError, OverflowError: `value` is none.
    """
    found = int(value)
    if not FIRST_TIME <= found <= LAST_TIME:
        raise ValueError(f"the time {value} is not within the years 1 to 9999")
    return found


def _aggregates(metrics: Iterable[Json]) -> list[dict[str, Any]]:
    return [{"metric_name": m["key"], "latest_value": float(m["value"])} for m in sorted(metrics, key=_key)]


def _datasets(inputs: Iterable[Json]) -> list[dict[str, Any]]:
    rows = [
        {**{name: use["dataset"].get(name) for name in ("name", "digest", "source_type", "source", "schema", "profile")},
         "tags": sorted((tag["key"], tag["value"]) for tag in use.get("tags", ()))}
        for use in inputs
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (row["name"], row["digest"]))


def _model_metrics(items: Iterable[Iterable[Json]]) -> pa.Array:
    rows = [
        [
            {
                "metric_name": m["key"],
                "value": float(m["value"]),
                "step": int(m.get("step", 0)),
                "metric_time": time(m["timestamp"]) * 1000,
                "run_id": m.get("run_id"),
                "dataset_name": m.get("dataset_name"),
                "dataset_digest": m.get("dataset_digest"),
            }
            for m in sorted(metrics, key=lambda m: (m["key"], int(m.get("step", 0)), int(m["timestamp"])))
        ]
        for metrics in items
    ]
    return pa.array(rows, shapes.MODEL_METRICS)
