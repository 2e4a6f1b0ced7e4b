"""Metrics: logging them, by far the most frequent calls, and their history, whole, paged or sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from mlflow.entities import Metric, Param, RunTag
from mlflow.entities.metric import MetricWithRunId
from mlflow.exceptions import MlflowException
from mlflow.store.entities.paged_list import PagedList
from mlflow.utils import validation
from mlflow.utils.search_utils import SearchUtils

from spark_tracking.kinds.catalog import RUN
from spark_tracking.kinds.entities import metric_value
from spark_tracking.lake import Entity, Event, MetricBlock
from spark_tracking.store.runs import Runs, tag_events
from spark_tracking.store.things import MAX_TIME, Home, Things, check_time, invalid, offset_of, pairs, require_values

_INT64 = 2**63
_ATTRIBUTES = attrgetter("key", "value", "timestamp", "step", "model_id", "dataset_name", "dataset_digest")
Row = tuple[int, int, float, bool]


class Metrics(Things[Metric]):
    """The metrics of runs."""

    kind = RUN

    def __init__(self, home: Home, runs: Runs) -> None:
        super().__init__(home)
        self._runs = runs

    def log_metric(self, run_id: str, metric: Metric) -> None:
        """Log one point of an active run."""
        validation._validate_metric(metric.key, metric.value, metric.timestamp, metric.step)
        experiment_id = self._runs.active(run_id).attr("experiment_id")
        self.lake.write(metrics=_Points.of([metric]).blocks(run_id, experiment_id or ""), polled=True)

    def log_batch(self, run_id: str, metrics: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]) -> None:
        """Log metrics, params and tags of an active run: all of them, or nothing."""
        validation._validate_run_id(run_id)
        points = _Points.of(metrics)
        checked = [] if points.plainly_valid() else metrics
        _, params, tags = validation._validate_batch_log_data(checked, params, tags)
        validation._validate_batch_log_limits(metrics, params, tags)
        validation._validate_param_keys_unique(params)
        run = self._runs.active(run_id)
        events = _batch_events(run, params, tags) if params or tags else []
        if events or metrics:
            self.lake.write(events, points.blocks(run_id, run.attr("experiment_id") or ""), polled=True)

    def get_metric_history(
        self, run_id: str, metric_key: str, max_results: int | None = None, page_token: str | None = None
    ) -> PagedList[Metric]:
        """The points of one metric by time, step and value; all of them, or a page."""
        offset = offset_of(page_token)
        points = self._history(run_id, metric_key)
        size = points.num_rows if max_results is None else max_results
        rows = _columns(points.slice(offset, size + 1))
        found = [Metric(metric_key, value, time, step) for time, step, value in zip(*rows)]
        token = SearchUtils.create_page_token(offset + size) if len(found) > size else None
        return PagedList(found[:size], token)

    def get_metric_history_bulk(self, run_ids: Sequence[str], metric_key: str, max_results: int) -> list[MetricWithRunId]:
        """The first points of one metric of several runs, by run id, time, step and value."""
        found: list[MetricWithRunId] = []
        for run_id, points in self._histories(run_ids, metric_key).items():
            rows = _columns(points.slice(0, max_results - len(found)))
            found += [_with_run(run_id, metric_key, value, time, step) for time, step, value in zip(*rows)]
        return found

    def get_max_step_for_metric(self, run_id: str, metric_key: str) -> int:
        """The greatest step that the metric was logged at; 0 for none."""
        return pc.max(self._history(run_id, metric_key)["metric_step"]).as_py() or 0

    def get_metric_history_bulk_interval_from_steps(
        self, run_id: str, metric_key: str, steps: Sequence[int], max_results: int
    ) -> list[MetricWithRunId]:
        """The points at these steps, by step, time and value."""
        rows = [row for row in _rows_by_step(self._history(run_id, metric_key)) if row[0] in set(steps)]
        return [_with_run(run_id, metric_key, _value(row), row[1], row[0]) for row in rows[:max_results]]

    def get_metric_history_bulk_interval(
        self, run_ids: Sequence[str], metric_key: str, max_results: int, start_step: int | None, end_step: int | None
    ) -> list[MetricWithRunId]:
        """Of each run at most `max_results` points, evenly sampled, the first and the last one among them."""
        if (start_step is None) != (end_step is None):
            raise MlflowException.invalid_parameter_value(
                "Both start_step and end_step must be specified together, or neither may be specified."
            )
        found, histories = [], self._histories(run_ids, metric_key)
        for run_id in run_ids:
            rows = _rows_by_step(histories[run_id], start_step, end_step) if run_id in histories else []
            sampled = (rows[i] for i in _sample(len(rows), max(1, max_results)))
            found += [_with_run(run_id, metric_key, _value(row), row[1], row[0]) for row in sampled]
        return found

    def _history(self, run_id: str, key: str) -> pa.Table:
        """The points of one metric by time, step and value; none for a run that is not there (any more)."""
        points = self.lake.metric_history(run_id, key or "")  # to the lake, no name means all
        return _as_in_sql(points if points.num_rows and self.lake.get("run", run_id) else points.slice(0, 0))

    def _histories(self, run_ids: Sequence[str], key: str) -> dict[str, pa.Table]:
        """The same of several runs by run id, those without points left out; one read for all."""
        if len(set(run_ids)) == 1:
            points = self._history(run_ids[0], key)
            return {run_ids[0]: points} if points.num_rows else {}
        points = self.lake.metric_history(run_ids, key or "")
        there = self.lake.get_many("run", set(run_ids))
        histories, start = {}, 0
        for run_id, count in zip(*(column.to_pylist() for column in pc.value_counts(points["run_id"]).flatten())):
            if run_id in there:
                histories[run_id] = _as_in_sql(points.slice(start, count))
            start += count
        return histories


def _batch_events(run: Entity, params: Sequence[Param], tags: Sequence[RunTag]) -> list[Event]:
    """The events of a validated batch. Raises MlflowException: a param has another value already, or none."""
    if not params:
        return tag_events(run.id, tags)
    old = run.items("param")
    changed = [{"key": p.key, "old_value": old[p.key], "new_value": p.value} for p in params if old.get(p.key, p.value) != p.value]
    if changed:
        raise invalid(f"Changing param values is not allowed. Params were already logged='{changed}' for run ID='{run.id}'.")
    new = [p for p in params if p.key not in old]
    require_values("params.value", new)
    return pairs(RUN.name, run.id, "param", new) + tag_events(run.id, tags)


def _as_in_sql(points: pa.Table) -> pa.Table:
    """One run's points, ordered by time, step and value, with NaN where MLflow's SQL store has it: as 0 with a flag."""
    nan = pc.is_nan(points["metric_value"])
    if not pc.any(nan).as_py():
        return points
    by = points.select(["metric_time", "metric_step"]).append_column("value", pc.if_else(nan, 0.0, points["metric_value"]))
    return points.take(pc.sort_indices(by, sort_keys=[(name, "ascending") for name in by.column_names]))


def _rows_by_step(points: pa.Table, start: int | None = None, end: int | None = None) -> list[Row]:
    if start is not None and end is not None:
        steps = points["metric_step"]
        points = points.filter(pc.and_(pc.greater_equal(steps, start), pc.less_equal(steps, end)))
    rows = [(s, t, 0.0 if math.isnan(v) else v, math.isnan(v)) for t, s, v in zip(*_columns(points))]
    return sorted(rows)


class _Points(NamedTuple):
    """Metric points in columns, equally long; what they were measured on is (model id, dataset's name, dataset's digest)."""

    names: Sequence[str]
    values: Sequence[float]
    times: Sequence[int]
    steps: Sequence[int]
    measured_on: Sequence[tuple[str | None, str | None, str | None]]

    @classmethod
    def of(cls, metrics: Sequence[Metric]) -> _Points:
        """The columns of metrics, each attribute looked at once: MLflow's are properties, which take most of a call's time."""
        if not metrics:
            return cls((), (), (), (), ())
        names, values, times, steps, *measured_on = zip(*map(_ATTRIBUTES, metrics))
        return cls(names, values, times, steps, list(zip(*measured_on)))

    def plainly_valid(self) -> bool:
        """Whether they are of the plain kind that needs no look at each by MLflow, which takes ten times as long."""
        try:
            for name in set(self.names):
                validation._validate_metric(name, 0.0, 0, 0)
        except (MlflowException, TypeError):
            return False
        whole = {*map(type, self.steps), *map(type, self.times)} <= {int}
        return whole and set(map(type, self.values)) <= {int, float} and min(self.times, default=0) >= 0

    def blocks(self, run_id: str, experiment_id: str) -> list[MetricBlock]:
        """One block for each model and dataset that they were measured on."""
        kinds = dict.fromkeys(self.measured_on)
        if len(kinds) < 2:
            return [self._block(run_id, experiment_id, *kind) for kind in kinds]
        groups: dict[Any, list[Any]] = {kind: [] for kind in kinds}
        for row in zip(*self):
            groups[row[-1]].append(row)
        return [_Points(*zip(*rows))._block(run_id, experiment_id, *kind) for kind, rows in groups.items()]

    def _block(self, run_id: str, experiment_id: str, model_id: str | None, dataset: str | None, digest: str | None) -> MetricBlock:
        times, steps = list(map(int, self.times)), list(map(int, self.steps))
        if max(times) > MAX_TIME:
            check_time("timestamp", max(times))
        if not -_INT64 <= min(steps) <= max(steps) < _INT64:
            raise invalid(f"Steps of metrics lie between {min(steps)} and {max(steps)}; expected whole numbers of 64 bits.")
        values = list(map(float, self.values))
        return MetricBlock(run_id, experiment_id, list(self.names), values, times, steps, model_id, dataset, digest)


def _columns(points: pa.Table) -> tuple[list[int], list[int], list[float]]:
    """Time in ms, step and value of each point."""
    times = pc.divide(points["metric_time"].cast(pa.int64()), 1000)
    return times.to_pylist(), points["metric_step"].to_pylist(), list(map(metric_value, points["metric_value"].to_pylist()))


def _with_run(run_id: str, key: str, value: float, time: int, step: int) -> MetricWithRunId:
    return MetricWithRunId(metric=Metric(key, value, time, step), run_id=run_id)


def _value(row: Row) -> float:
    return math.nan if row[3] else row[2]


def _sample(count: int, size: int) -> list[int]:
    """Which of `count` ordered rows to show: the first of each of `size` even buckets (SQL's NTILE), and the last row."""
    small, rest = divmod(count, size)
    bounds = [i * (small + 1) if i <= rest else i * small + rest for i in range(min(count, size))]
    if bounds and bounds[-1] != count - 1:
        bounds[-1:] = [count - 1] if len(bounds) >= size else [bounds[-1], count - 1]
    return bounds
