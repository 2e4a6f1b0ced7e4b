"""What tests write into lakes."""

from __future__ import annotations

import time
from typing import Any

from spark_tracking.kinds.state import MetricFold
from spark_tracking.lake import Entity, Event, Lake, MetricBlock

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


def see_late_what_came_while_it_only_wrote(lake: Lake, writer: Lake) -> None:
    """`writer`, another process's lake, leaves the points of others where they are until it reads; by then the tables have them."""
    lake.write(run_created("r1"), [points("r1", "loss", 0.0)])
    assert last_point(writer).latest.step == 0
    for step in range(1, 6):
        lake.write((), [points("r1", "loss", 1.0 if step == 3 else 0.0, step=step)])
        lake.settle()
        writer.write((), [points("r2", "loss", 0.0, step=step)])
    lake.write((), [points("r1", "loss", 0.0, step=6)])
    assert (last_point(writer).maximum, last_point(writer).latest.step) == (1.0, 6)
    assert writer.metric_history("r1")["metric_step"].to_pylist() == list(range(7))
    assert writer.metric_history("r2")["metric_step"].to_pylist() == list(range(1, 6))
    assert writer.check().problems == []


def last_point(lake: Lake) -> MetricFold:
    run = lake.get("run", "r1")
    assert run is not None
    return run.metrics["loss"]


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    """Wait for something that another thread or process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        time.sleep(0.01)
