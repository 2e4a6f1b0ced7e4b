"""Metric points on their way from a source's rows to a lake's blocks: those the lake lacks, each with the model it was logged for."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.kinds.shapes import milliseconds
from spark_tracking.lake import Entity, MetricBlock
from spark_tracking.readers.reader import Row

ModelAndData = tuple[str, str | None, str | None]
_Columns = tuple[list[str], list[int], list[int], list[float]]


class Key(NamedTuple):
    """A point by its content; the value by its bits, so that NaN equals itself."""

    name: str
    time: int
    step: int
    bits: bytes


def key(name: str, time: int, step: int, value: float) -> Key:
    """The key of a point."""
    return Key(name, time, step, struct.pack("<d", value))


class ModelPoints:
    """The points that were logged for a model. A run's history shows them too, mostly without saying so."""

    def __init__(self) -> None:
        self._of_run: dict[str, dict[Key, ModelAndData]] = {}

    def add(self, model: Row) -> None:
        """Note the points of a row of `logged_models_latest`."""
        for point in model["metrics"] or ():
            if point["run_id"]:
                one = key(point["metric_name"], milliseconds(point["metric_time"]), point["step"] or 0, point["value"])
                self._of_run.setdefault(point["run_id"], {})[one] = (model["model_id"], point["dataset_name"], point["dataset_digest"])

    def of(self, run_id: str) -> dict[Key, ModelAndData]:
        """Those of one run, with the model, and the data set's name and digest."""
        return self._of_run.get(run_id, {})


def of_model(model: Row, there: Entity | None, experiment_of_run: dict[str, str]) -> Iterator[MetricBlock]:
    """The points of a logged model that the lake lacks, one block for each run and data set."""
    known = set() if there is None else {(p.name, p.run_id, p.dataset_name, p.dataset_digest, p.step, p.time) for p in there.points}
    blocks: dict[tuple[str, str | None, str | None], MetricBlock] = {}
    for p in model["metrics"] or ():
        run, data, time, step = p["run_id"] or "", (p["dataset_name"], p["dataset_digest"]), milliseconds(p["metric_time"]), p["step"] or 0
        if (p["metric_name"], run, *data, step, time) in known:
            continue
        experiment = experiment_of_run.get(run) or str(model["experiment_id"])
        block = blocks.setdefault((run, *data), MetricBlock(run, experiment, [], [], [], [], model["model_id"], *data))
        block.names.append(p["metric_name"])
        block.values.append(p["value"])
        block.times.append(time)
        block.steps.append(step)
    yield from blocks.values()


def by_run(points: pa.Table) -> dict[str, pa.Table]:
    """The rows of a table of points, a table for each run."""
    if not points.num_rows:
        return {}
    points = points.combine_chunks()
    # converted once: a call of Arrow for each of many short runs costs more than its work
    points = points.set_column(points.schema.get_field_index("metric_time"), "metric_time", _in_milliseconds(points["metric_time"]))
    ids = points["run_id"].combine_chunks()
    order = pc.sort_indices(ids)
    points = points.take(order)
    runs = pc.value_counts(points["run_id"].combine_chunks())
    found, start = {}, 0
    for run, count in zip(runs.field(0).to_pylist(), runs.field(1).to_pylist()):
        found[run] = points.slice(start, count)
        start += count
    return found


def of_run(run_id: str, experiment_id: str, points: pa.Table, known: Iterable[Key]) -> list[MetricBlock]:
    """The points of a run as a block, without those that are known."""
    names, times, steps, values = _columns(points)
    known = set(known)
    if known:
        kept = [i for i, one in enumerate(zip(names, times, steps, values)) if key(*one) not in known]
        names, times, steps, values = ([column[i] for i in kept] for column in (names, times, steps, values))  # type: ignore[assignment]
    return [MetricBlock(run_id, experiment_id, names, values, times, steps)] if names else []


def keys(points: pa.Table) -> set[Key]:
    """The keys of all points of a table."""
    return {key(*one) for one in zip(*_columns(points))}


def _columns(points: pa.Table) -> _Columns:
    times = points["metric_time"]
    times = times if pa.types.is_int64(times.type) else _in_milliseconds(times)
    return points["metric_name"].to_pylist(), times.to_pylist(), points["metric_step"].to_pylist(), points["metric_value"].to_pylist()


def _in_milliseconds(times: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.divide(times.cast(pa.int64()), 1000)
