"""What tests write into lakes."""

from __future__ import annotations

import time
from typing import Any

from spark_tracking.lake import Entity, Event, MetricBlock

START = 1_700_000_000_000


def run_created(run_id: str, **tags: str) -> list[Event]:
    """The events of a new run in experiment 0."""
    values = {
        "created": str(START),
        "experiment_id": "0",
        "run_name": f"run {run_id}",
        "status": "RUNNING",
        "start_time": str(START),
        "lifecycle_stage": "active",
    }
    attributes = [Event("run", run_id, "attr", key, value) for key, value in values.items()]
    return attributes + [tag(run_id, key, value) for key, value in tags.items()]


def tag(run_id: str, key: str, value: str | None) -> Event:
    return Event("run", run_id, "tag", key, value)


def param(run_id: str, key: str, value: str) -> Event:
    return Event("run", run_id, "param", key, value)


def points(run_id: str, name: str, *values: float, step: int = 0, time_ms: int = START, **more: Any) -> MetricBlock:
    """A block of one metric at steps that follow each other."""
    count = len(values)
    return MetricBlock(run_id, "0", [name] * count, list(values), [time_ms] * count, list(range(step, step + count)), **more)


def what(entity: Entity | None) -> object:
    """The whole content of an entity, in an order of its own and so that NaN equals NaN."""
    if entity is None:
        return None
    fields = {name: dict(sorted(registers.items())) for name, registers in sorted(entity.fields.items()) if registers}
    return repr((fields, sorted(entity.metrics.items()), sorted(entity.points.items(), key=repr), entity.purged))


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    """Wait for something that another thread or process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        time.sleep(0.01)
