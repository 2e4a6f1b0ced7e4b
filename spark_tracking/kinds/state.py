"""What a lake knows of one thing (an experiment, a run, a model, ...): a set of registers that only grows.

Every change is an event `(hlc, writer, kind, id, field, key, value)` and sets one register `field/key`. Of two values the
one with the greater `(hlc, writer)` stands, except for params, which are immutable: there the first stands. Metrics fold by
min, max and the greatest `(step, time, value)`. All of these are idempotent and commutative, so events may be seen twice
and in any order: the same events always make the same entity.

The registers of each kind stand in `kinds.catalog`; besides those of its columns there are

    experiment          attr on "0": last_id, the greatest id given; dataset: as a run's, how one was first described in the experiment
    run                 attr: created
    logged_model        purged_run: key is the id of a run that is gone for good; its points go with it
    registered_model    attr: last_version, the greatest number given

`value` is text; None removes; times are milliseconds since the epoch; a data set's is JSON under the key digest/name.
An entity is there once `attr/created` is. `purge` (field) is a tombstone for the whole: registers not later than it are gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import msgpack

from spark_tracking.errors import LakeCorrupt

COUNTER_BITS = 16
"""How many bits of a clock's stamp count within its millisecond; see `lake.journal_record.Clock`."""
MODEL_POINTS_KEPT = 1000
"""Points of one metric, run and dataset that a logged model's row keeps, the latest ones; the history has all."""


class Event(NamedTuple):
    """One change of one register, as in a journal record; its clock and writer are the record's."""

    kind: str
    id: str
    field: str
    key: str
    value: str | None


class Stamp(NamedTuple):
    """A hybrid logical clock and the writer that breaks ties."""

    hlc: int
    writer: str


@dataclass(slots=True)
class MetricBlock:
    """Metric points of one run, in columns: what one call logs.

    Attributes:
        names, values, times (ms since the epoch), steps: equally long, one entry a point.
        model_id, dataset_name, dataset_digest: what the points were measured on, where known; one for the block.
    """

    run_id: str
    experiment_id: str
    names: list[str]
    values: list[float]
    times: list[int]
    steps: list[int]
    model_id: str | None = None
    dataset_name: str | None = None
    dataset_digest: str | None = None


def time_of(hlc: int) -> int:
    """The wall time part of a stamp, in milliseconds since the epoch."""
    return hlc >> COUNTER_BITS


class Register(NamedTuple):
    """A value and when it was set."""

    stamp: Stamp
    value: str | None


class Point(NamedTuple):
    """The latest point of a metric; compares as MLflow does: step, then time (ms), then value."""

    step: int
    time: int
    value: float

    def beats(self, other: Point) -> bool:
        """Whether this point is later; NaN counts as 0, as in MLflow's SQL store, and loses a tie."""
        mine = (self.step, self.time, 0.0 if math.isnan(self.value) else self.value)
        theirs = (other.step, other.time, 0.0 if math.isnan(other.value) else other.value)
        return mine > theirs or (mine == theirs and not math.isnan(self.value) and math.isnan(other.value))


class MetricFold(NamedTuple):
    """All points of one metric of a run, folded. Min and max leave NaN out unless nothing else was logged."""

    minimum: float
    maximum: float
    latest: Point

    def merged(self, other: MetricFold) -> MetricFold:
        """Both folded into one."""
        low, high = self.minimum, self.maximum
        if not math.isnan(other.minimum):  # one NaN is not another: what merges nothing new must stay the same object
            low = other.minimum if math.isnan(low) else min(low, other.minimum)
            high = other.maximum if math.isnan(high) else max(high, other.maximum)
        return MetricFold(low, high, other.latest if other.latest.beats(self.latest) else self.latest)


class ModelPoint(NamedTuple):
    """What identifies a metric point that was logged for a model; the value stands beside it."""

    name: str
    run_id: str
    dataset_name: str | None
    dataset_digest: str | None
    step: int
    time: int


@dataclass(slots=True)
class Entity:
    """The folded state of one thing; see the module for the registers of each kind."""

    kind: str
    id: str
    fields: dict[str, dict[str, Register]] = field(default_factory=dict)
    metrics: dict[str, MetricFold] = field(default_factory=dict)
    points: dict[ModelPoint, float] = field(default_factory=dict)
    purged: Stamp | None = None

    def fold(self, stamp: Stamp, name: str, key: str, value: str | None) -> None:
        """Set the register `name/key`, if `stamp` wins."""
        if name == "purge":
            if self.purged is None or stamp > self.purged:
                self.purged = stamp
                self._drop_purged()
            return
        if self.purged is not None and stamp <= self.purged:
            return
        registers = self.fields.setdefault(name, {})
        old = registers.get(key)
        if old is None or ((stamp < old.stamp) if name == "param" else (stamp > old.stamp)):
            registers[key] = Register(stamp, value)
        if name == "purged_run":
            self.points = {point: value for point, value in self.points.items() if point.run_id != key}

    def fold_metric(self, name: str, fold: MetricFold) -> None:
        """Fold points of the metric `name` in; what was purged takes none, since its id does not come back."""
        if self.purged is not None:
            return
        mine = self.metrics.get(name)
        self.metrics[name] = fold if mine is None else mine.merged(fold)

    def fold_block(self, block: MetricBlock) -> None:
        """Fold the points of a block in: a run's metrics, or a logged model's points."""
        if self.purged is not None:
            return
        if self.kind == "logged_model":
            keys = (block.run_id, block.dataset_name, block.dataset_digest)
            points = zip(block.names, block.steps, block.times, block.values)
            self.fold_points((ModelPoint(name, *keys, step, time), value) for name, step, time, value in points)
            return
        for name, value, time, step in zip(block.names, block.values, block.times, block.steps):
            self.fold_metric(name, MetricFold(value, value, Point(step, time, value)))

    def fold_points(self, points: Iterable[tuple[ModelPoint, float]]) -> None:
        """Fold metric points of a logged model in; of two values at one point the greater stands. A purged one takes none."""
        if self.purged is not None:
            return
        gone = self.fields.get("purged_run", {})
        for point, value in points:
            old = self.points.get(point)
            if point.run_id in gone:
                continue
            if old is None or value > old or (math.isnan(old) and not math.isnan(value)):
                self.points[point] = value
        if len(self.points) > MODEL_POINTS_KEPT:
            self._trim_points()

    def merge(self, other: Entity) -> None:
        """Fold all that `other` knows of the same thing in."""
        if other.purged is not None:
            self.fold(other.purged, "purge", "", None)
        for name, registers in other.fields.items():
            for key, register in registers.items():
                self.fold(register.stamp, name, key, register.value)
        for name, fold in other.metrics.items():
            self.fold_metric(name, fold)
        if other.points:
            self.fold_points(other.points.items())

    def copy(self, points: bool = True) -> Entity:
        """An independent copy, with its metrics or without; registers and folds are immutable, only containers are copied."""
        fields = {name: dict(registers) for name, registers in self.fields.items()}
        if not points:
            return Entity(self.kind, self.id, fields, purged=self.purged)
        return Entity(self.kind, self.id, fields, dict(self.metrics), dict(self.points), self.purged)

    @property
    def born(self) -> int:
        """The clock of its creation; 0 before that is known."""
        register = self.fields.get("attr", {}).get("created")
        return 0 if register is None else register.stamp.hlc

    @property
    def exists(self) -> bool:
        """Whether its creation has been seen and it was not purged after."""
        return self.attr("created") is not None

    @property
    def deleted(self) -> bool:
        """Whether it is in the trash."""
        return self.attr("lifecycle_stage") == "deleted"

    def attr(self, key: str) -> str | None:
        """The attribute `key`; None where it is not set."""
        register = self.fields.get("attr", {}).get(key)
        return None if register is None else register.value

    def number(self, key: str) -> int | None:
        """The attribute `key` as a whole number (times are milliseconds)."""
        text = self.attr(key)
        return None if text is None else int(text)

    def items(self, name: str) -> dict[str, str]:
        """What stands under a field such as `tag` or `param`, without what was removed, by key."""
        registers = self.fields.get(name, {})
        return {key: r.value for key, r in sorted(registers.items()) if r.value is not None}

    def events(self) -> Iterator[Event]:
        """The entity as the events that would make it anew (attributes and fields, not metrics)."""
        for name, registers in self.fields.items():
            for key, register in registers.items():
                if register.value is not None:
                    yield Event(self.kind, self.id, name, key, register.value)

    def pack(self) -> bytes:
        """The `state` column. Format: msgpack of [writers, {field: {key: [hlc, writer index, value]}}, metrics, points, purge]."""
        writers: dict[str, int] = {}

        def stamp(s: Stamp) -> tuple[int, int]:
            return s.hlc, writers.setdefault(s.writer, len(writers))

        fields = {n: {k: (*stamp(r.stamp), r.value) for k, r in rs.items()} for n, rs in self.fields.items()}
        metrics = {n: (m.minimum, m.maximum, *m.latest) for n, m in self.metrics.items()}
        purged = None if self.purged is None else stamp(self.purged)
        packed: bytes = msgpack.packb([list(writers), fields, metrics, [(*p, v) for p, v in self.points.items()], purged])
        return packed

    @classmethod
    def unpack(cls, kind: str, id: str, packed: bytes) -> Entity:
        """The inverse of `pack`.

        Raises:
            LakeCorrupt: the bytes are none that `pack` makes.
        """
        try:
            return cls._unpacked(kind, id, packed)
        except (ValueError, TypeError, LookupError, msgpack.UnpackException) as error:
            raise LakeCorrupt(
                f"The stored state of {kind} '{id}' is damaged: {error}. Mend it with: spark-tracking lake rebuild"
            ) from error

    @classmethod
    def _unpacked(cls, kind: str, id: str, packed: bytes) -> Entity:
        writers, fields, metrics, points, purged = msgpack.unpackb(packed, strict_map_key=False)
        entity = cls(kind, id)
        for name, registers in fields.items():
            entity.fields[name] = {key: Register(Stamp(hlc, writers[w]), value) for key, (hlc, w, value) in registers.items()}
        for name, (low, high, *latest) in metrics.items():
            entity.metrics[name] = MetricFold(low, high, Point(*latest))
        entity.points = {ModelPoint(*point): value for *point, value in points}
        if purged is not None:
            entity.purged = Stamp(purged[0], writers[purged[1]])
        return entity

    def _drop_purged(self) -> None:
        for name, registers in self.fields.items():
            self.fields[name] = {k: r for k, r in registers.items() if r.stamp > self.purged}  # type: ignore[operator]
        self.metrics.clear()
        self.points.clear()

    def _trim_points(self) -> None:
        series: dict[tuple[str | None, ...], list[ModelPoint]] = {}
        for point in self.points:
            series.setdefault(point[:4], []).append(point)
        for points in series.values():
            points.sort(key=lambda p: (p.step, p.time))
            for point in points[:-MODEL_POINTS_KEPT]:
                del self.points[point]
