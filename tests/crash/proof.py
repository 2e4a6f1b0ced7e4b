"""What must be true of a lake, whatever was killed: the recorded history of calls against what a new process sees."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from spark_tracking.address import LakeUri
from spark_tracking.delta.table import Table
from spark_tracking.kinds.rows import rows as project_rows
from spark_tracking.lake import Lake
from spark_tracking.lake.journal import SEALED, SUFFIX
from spark_tracking.lake.replay import lacking, of_logs
from spark_tracking.lake.tables import DERIVED, LOGS
from tests.crash.worker import SHARED_RUN, TRIPLE, half_calls


@dataclass
class Call:
    """A call as its process saw it; `end` is None where it was killed before the answer."""

    tried: dict[str, Any]
    start: int
    end: int | None = None
    result: Any = None


@dataclass
class Recorded:
    """The histories of all processes of a lake."""

    calls: list[Call] = field(default_factory=list)
    complaints: list[dict[str, Any]] = field(default_factory=list)
    looks: int = 0

    @property
    def acknowledged(self) -> list[Call]:
        return [call for call in self.calls if call.end is not None]

    @classmethod
    def read(cls, folder: Path) -> Recorded:
        recorded = cls()
        for path in sorted(folder.glob("*.jsonl")):
            call: Call | None = None
            for line in path.read_bytes().split(b"\n"):
                if not line:
                    continue
                note = json.loads(line)
                if note["what"] == "try":
                    call = Call(note, note["at"])
                    recorded.calls.append(call)
                elif note["what"] == "ack" and call is not None:
                    call.end, call.result = note["at"], note["result"]
                elif note["what"] == "looked":
                    recorded.looks += 1
                else:
                    recorded.complaints.append(note)
        return recorded


def prove(root: str, histories: Path) -> Recorded:
    """Check a lake at rest against the histories; returns them.

    Raises:
        AssertionError: with everything that is wrong.
    """
    recorded = Recorded.read(histories)
    lake = Lake(LakeUri.parse(root))
    try:
        wrong = [f"a process complains: {note}" for note in recorded.complaints]
        wrong += _registers(lake, recorded)  # while much is only in journals
        wrong += _names(lake, recorded)
        wrong += _points(_histories(lake, recorded, most=20), recorded)
        lake.settle()
        wrong += _points(_scanned(lake), recorded)
        wrong += _registers(lake, recorded)
        wrong += _derived(lake)
        wrong += half_calls(lake.uri.root)
        found = [problem for problem in lake.check().problems if "no whole record" not in problem]  # half of a call that was killed
        wrong += [*found, *(_what_is_lacking(lake) if found else ())]
        wrong += _journal_left(lake)
    finally:
        lake.close()
    assert not wrong, f"{len(wrong)} things are wrong, first:\n" + "\n".join(wrong[:10])
    return recorded


Steps = dict[str, dict[str, Counter[int]]]
"""By run and metric, how often each step is there; a call's points are one metric's (see `worker`)."""


def _histories(lake: Lake, recorded: Recorded, most: int) -> Steps:
    """As `metric_history` shows some runs."""
    runs = sorted({run for call in recorded.calls for run, _, _ in call.tried.get("points", ())})
    return {run: _counted(lake.metric_history(run)).get(run, {}) for run in runs[:: len(runs) // most + 1]}


def _scanned(lake: Lake) -> Steps:
    """As `scan` shows them all."""
    return defaultdict(dict, _counted(lake.scan("run_metrics_history", ["run_id", "metric_name", "metric_step"]).read_all()))


def _counted(points: pa.Table) -> Steps:
    steps: Steps = {}
    columns = (points[name].to_pylist() for name in ("run_id", "metric_name", "metric_step"))
    for run, name, step in zip(*columns):
        steps.setdefault(run, {}).setdefault(name, Counter())[step] += 1
    return steps


def _points(found: Steps, recorded: Recorded) -> Iterator[str]:
    """Each acknowledged point is there exactly once, and of a call all points or none."""
    for call in recorded.calls:
        for run, name, count in call.tried.get("points", ()):
            steps = found[run].get(name, Counter()) if run in found or isinstance(found, defaultdict) else Counter(range(count))
            if steps != Counter(range(count)) and (call.end is not None or steps):
                yield f"points of {name} on {run}: {dict(steps)}, wanted {count}, acknowledged: {call.end is not None}"


def _registers(lake: Lake, recorded: Recorded) -> Iterator[str]:
    """Tags hold a last value, params a first one; what was acknowledged before another call began is before it."""
    writes: dict[tuple[str, str, str, str], list[tuple[Call, str]]] = defaultdict(list)
    for call in recorded.calls:
        for kind, id, name, key, value in call.tried.get("events", ()):
            writes[kind, id, name, key].append((call, value))
    runs = lake.get_many("run", {id for _, id, _, _ in writes})
    for (kind, id, name, key), calls in writes.items():
        if id in runs:
            yield from _register(f"{kind} {id} {name}/{key}", runs[id].fields.get(name, {}).get(key), name, calls)
        elif any(call.end is not None for call, _ in calls):
            yield f"{kind} {id} is gone"
    shared = runs.get(SHARED_RUN)
    if shared is not None and len({shared.items("tag").get(key) for key in TRIPLE}) != 1:
        yield f"tags of one call are torn apart: {shared.items('tag')}"


def _register(what: str, register: Any, name: str, calls: list[tuple[Call, str]]) -> Iterator[str]:
    acknowledged = [(call, value) for call, value in calls if call.end is not None]
    if register is None:
        if acknowledged:
            yield f"{what} is gone; acknowledged were {[value for _, value in acknowledged][-3:]}"
        return
    setters = [call for call, value in calls if value == register.value]
    if not setters:
        yield f"{what} holds '{register.value}', which nobody wrote"
        return
    mine = setters[0]
    for other, value in acknowledged:
        assert other.end is not None
        if name != "param" and mine.end is not None and other.start > mine.end and value != register.value:
            yield f"{what} holds '{register.value}', though '{value}' was written after that was acknowledged"
        if name == "param" and other.end < mine.start and value != register.value:
            yield f"{what} holds '{register.value}', though '{value}' was acknowledged before that was written"


def _names(lake: Lake, recorded: Recorded) -> Iterator[str]:
    """No name and no number was given twice, and what was given is there."""
    given = [call for call in recorded.acknowledged if "names" in call.tried]
    versions = [call.result for call in given if call.tried["names"] == "version"]
    experiments = [(call.tried["name"], call.result) for call in given if call.tried["names"] == "experiment" and call.result]
    for what, values in (
        ("version", versions),
        ("experiment name", [name for name, _ in experiments]),
        ("experiment id", [id for _, id in experiments]),
    ):
        yield from (f"{what} {value} was given {count} times" for value, count in Counter(values).items() if count > 1)
    there = lake.search("experiment")
    yield from (f"two experiments are named '{n}'" for n, count in Counter(e.attr("name") for e in there).items() if count > 1)
    found = {(e.attr("name"), e.id) for e in there}
    yield from (f"experiment {pair} is gone" for pair in experiments if pair not in found)
    numbers = {int(e.id.rsplit("/", 1)[1]) for e in lake.search("model_version")}
    yield from (f"version {version} is gone" for version in versions if version not in numbers)


def _derived(lake: Lake) -> Iterator[str]:
    """The derived tables, refreshed again and again, are what the logs alone make of them."""
    truth = of_logs(*(Table(lake.uri.root, spec) for spec in LOGS))
    for spec in DERIVED:
        base = lake._view.bases[spec.kind]
        base.update()
        columns = [name for name in spec.schema.names if name != "state"]
        stored = base.select(None, columns).sort_by(spec.key)
        rebuilt = project_rows(spec.kind, [e for e in truth.values() if e.kind == spec.kind]).select(columns)
        if stored.to_pylist() != rebuilt.to_pylist():
            yield f"{spec.name} is not what the logs make of it: {stored.num_rows} rows, rebuilt {rebuilt.num_rows}"


def _what_is_lacking(lake: Lake) -> Iterator[str]:
    """What the logs have of runs and this process does not show."""
    for (kind, id), truth in of_logs(*(Table(lake.uri.root, spec) for spec in LOGS)).items():
        if truth.exists and any(lack := lacking(lake.get(kind, id), truth)):
            yield f"{kind} '{id}' is shown without {lack}"


def _journal_left(lake: Lake) -> Iterator[str]:
    left = sorted(p.name for p in (Path(lake.uri.root) / "_journal").iterdir() if p.suffix in (SUFFIX, SEALED))
    if left:
        yield f"the journal of dead processes stays behind: {left[:5]}"
