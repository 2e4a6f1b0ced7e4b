"""The processes of a crash test: each does one kind of work on a lake, over and over, until it is killed.

What a process asks of the lake and what is acknowledged to it goes, line by line, into a history file of its own; the lines
are in the kernel's hands before the next step, so `kill -9` loses none. Times are CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from deltalake import DeltaTable

import spark_tracking.delta.query  # noqa: F401  # imported once, before processes are forked off
from spark_tracking.address import LakeUri
from spark_tracking.delta.table import Table
from spark_tracking.lake import Event, Lake, MetricBlock
from spark_tracking.lake.flush import Flusher
from spark_tracking.lake.journal import Journal, SegmentWriter

SHARED_RUN = "shared"
MODEL = "model 'of' all"
TRIPLE = ("a", "b", "c")
"""Tags that are only ever set together, to one value."""


class History:
    """Appends to a process's history file."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def note(self, what: str, **more: Any) -> None:
        line = json.dumps({"what": what, "at": time.monotonic_ns(), **more})
        os.write(self._fd, line.encode() + b"\n")

    def call(self, number: int, do: Callable[[], Any], **more: Any) -> None:
        """Do something with the lake: `try` before, `ack` with its result after."""
        self.note("try", n=number, **more)
        result = do()
        self.note("ack", n=number, result=result)


def main(role: str, root: str, seed: int, history: str, options: dict[str, Any]) -> None:
    """One process, from its start to its end."""
    os.environ["SPARK_TRACKING_FLUSH_SECONDS"] = str(options.get("flush_seconds", 0.3))
    rng = random.Random(seed)
    if behind := options.get("clock_behind_s"):
        now = time.time_ns
        time.time_ns = lambda: now() - int(behind * 1e9)
    if point := options.get("kill_at"):
        kill_at(point, options["how"], options["nth"], rng)
    lake = Lake.open(LakeUri.parse(root), create=True)
    note = History(Path(history))
    try:
        ROLES[role](lake, note, rng, Path(history))
    except Exception as error:
        import traceback

        note.note("failed", role=role, error=repr(error), trace=traceback.format_exc())
        raise


# -- roles --------------------------------------------------------------------------------------------------------


def write_for_ever(lake: Lake, history: History, rng: random.Random, path: Path) -> None:
    me = f"{path.stem}-{rng.getrandbits(40):010x}"
    for number in range(10**9):
        write_once(lake, history, rng, me, number)


def write_once(lake: Lake, history: History, rng: random.Random, me: str, number: int) -> None:
    """One call: a new run, points, tags, params, or a tag and a param on what all processes share."""
    call = f"{me}-{number}"
    run = f"{me}-run{max(number // 10 * 10, 0)}"
    events: list[Event] = []
    blocks: list[MetricBlock] = []
    if number % 10 == 0:
        events += [Event("run", run, "attr", key, value) for key, value in _new_run(run).items()]
    dice = rng.random()
    if dice < 0.6:
        count = rng.choice([1, 1, 2, 50])
        blocks.append(_points(run, call, count))
    if dice > 0.5:
        events += [Event("run", run, "tag", key, call) for key in TRIPLE]
        events.append(Event("run", run, "param", f"p{number}", call))
    if rng.random() < 0.2:
        events += [Event("run", SHARED_RUN, "tag", key, call) for key in TRIPLE]
        events.append(Event("run", SHARED_RUN, "param", f"p{rng.randrange(50)}", call))
        blocks.append(_points(SHARED_RUN, call, 3))
    written = {"events": [tuple(e) for e in events], "points": [[b.run_id, b.names[0], len(b.names)] for b in blocks]}
    history.call(number, lambda: lake.write(events, blocks), call=call, **written)
    if number % 40 == 39:
        lake.settle(wait=rng.random() < 0.3)


def _new_run(run: str) -> dict[str, str]:
    values = {"created": "1", "experiment_id": "0", "run_name": run, "status": "RUNNING", "start_time": "1"}
    return {**values, "lifecycle_stage": "active"}


def _points(run: str, call: str, count: int) -> MetricBlock:
    """Points that tell to which call they belong (the name) and how many there must be (the value)."""
    return MetricBlock(run, "0", [call] * count, [float(count)] * count, [1] * count, list(range(count)))


def name_for_ever(lake: Lake, history: History, rng: random.Random, path: Path) -> None:
    """Takes names and numbers that others want, too."""
    for number in range(10**9):
        if rng.random() < 0.5:
            history.call(number, lambda: next_version(lake), names="version")
        else:
            name = f"experiment {rng.randrange(2000)}"
            history.call(number, partial(take_name, lake, name), names="experiment", name=name)
        time.sleep(rng.random() * 0.03)


def next_version(lake: Lake) -> int:
    """A new version of the one model."""
    taken = 0

    def decide() -> list[Event]:
        nonlocal taken
        model = lake.get("registered_model", MODEL)
        taken = 1 + (model.number("last_version") or 0 if model else 0)
        new = [] if model else [Event("registered_model", MODEL, "attr", "created", "1")]
        version = [Event("model_version", f"{MODEL}/{taken}", "attr", "created", "1")]
        return [*new, Event("registered_model", MODEL, "attr", "last_version", str(taken)), *version]

    lake.commit(decide)
    return taken


def take_name(lake: Lake, name: str) -> str | None:
    """A new experiment, unless its name is taken; its id, or None."""
    taken: str | None = None

    def decide() -> list[Event]:
        nonlocal taken
        taken = None
        quoted = name.replace("'", "''")
        if lake.search("experiment", f"name = '{quoted}'"):
            return []
        default = lake.get("experiment", "0")
        assert default is not None
        taken = str((default.number("last_id") or 0) + 1)
        events = [Event("experiment", taken, "attr", key, value) for key, value in {"created": "1", "name": name}.items()]
        return [*events, Event("experiment", "0", "attr", "last_id", taken)]

    lake.commit(decide)
    return taken


def flush_for_ever(lake: Lake, history: History, rng: random.Random, path: Path) -> None:
    while True:
        rng.choice([lake.flush, lake.refresh, lake.settle])()
        time.sleep(rng.random() * 0.2)


def race_for_ever(lake: Lake, history: History, rng: random.Random, path: Path) -> None:
    """Flushes and refreshes without the lock that keeps others away, and takes living writers for dead now and then."""
    journal = Journal(Path(lake.uri.root))
    really = journal.abandoned
    journal.abandoned = lambda segment: really(segment) or rng.random() < 0.05  # type: ignore[method-assign]
    flusher = Flusher(lake.uri.root, journal)
    while True:
        rng.choice([flusher.flush, lake._upkeep.refresher.refresh])()
        time.sleep(rng.random() * 0.2)


def maintain_for_ever(lake: Lake, history: History, rng: random.Random, path: Path) -> None:
    while True:
        if rng.random() < 0.5:
            lake.compact()
        elif rng.random() < 0.8:
            lake.vacuum(keep=timedelta(seconds=2))
        else:
            lake.rebuild()
        time.sleep(rng.random() * 0.5)


def read_for_ever(lake: Lake, history: History, rng: random.Random, path: Path) -> None:
    """Looks for what was acknowledged to others before it looked."""
    offsets: dict[Path, int] = {}
    while True:
        acknowledged = _newly_acknowledged(path, offsets)
        for call in rng.sample(acknowledged, min(len(acknowledged), 20)):
            for run, name, count in call["points"]:
                found = lake.metric_history(run, name)["metric_step"].to_pylist()
                if sorted(found) != list(range(count)):
                    history.note("unseen", call=call, found=found, run=run)
            for kind, id, field, key, value in call["events"]:
                entity = lake.get(kind, id)
                seen = None if entity is None else entity.fields.get(field, {}).get(key)
                if seen is None or (seen.value != value and id != SHARED_RUN and field == "param"):
                    history.note("unseen", call=call, found=repr(seen), run=id, key=key)
        shared = lake.get("run", SHARED_RUN)
        if shared is not None and len({shared.items("tag").get(key) for key in TRIPLE}) != 1:
            history.note("torn", tags=shared.items("tag"))
        if rng.random() < 0.2:
            runs = {call["events"][0][1] for call in acknowledged if call["events"] and call["events"][0][3] == "created"}
            missing = runs - {entity.id for entity in lake.search("run")}
            if missing:
                history.note("unseen", search=sorted(missing))
        history.note("looked", calls=len(acknowledged))
        time.sleep(rng.random() * 0.05)


def _newly_acknowledged(mine: Path, offsets: dict[Path, int]) -> list[dict[str, Any]]:
    """The writers' calls whose acknowledgement was noted since the last look."""
    calls = []
    for path in mine.parent.glob("write*.jsonl"):
        with open(path, "rb") as file:
            file.seek(offsets.get(path, 0))
            lines = file.read().split(b"\n")[:-1]
        notes = [json.loads(line) for line in lines]
        if notes and notes[-1]["what"] == "try":
            notes.pop()  # looked at again when it is acknowledged
        offsets[path] = offsets.get(path, 0) + sum(len(line) + 1 for line in lines[: len(notes)])
        calls += [tried for tried, ack in pairwise(notes) if tried["what"] == "try" and ack["what"] == "ack" and "call" in tried]
    return calls


def read_raw_for_ever(lake: Lake, history: History, rng: random.Random, path: Path) -> None:
    """Reads the tables as another Delta engine does; a call's rows are all there or none is."""
    while True:
        for problem in half_calls(lake.uri.root):
            history.note("half", problem=problem)
        history.note("looked")
        time.sleep(rng.random() * 0.2)


def half_calls(root: str) -> list[str]:
    """Calls of which a table holds some rows and lacks others."""
    problems = []
    try:
        points = _raw(root, "run_metrics_history", ["run_id", "metric_name", "metric_step", "metric_value"])
        runs = _raw(root, "runs_latest", ["run_id", "tags"])
        events = _raw(root, "events", ["hlc", "writer", "field", "key", "value"])
    except FileNotFoundError:
        return []  # vacuumed while it was read
    steps: dict[tuple[str, str], tuple[set[int], float]] = {}
    for run, name, step, value in zip(*(points[c].to_pylist() for c in points.column_names)):
        steps.setdefault((run, name), (set(), value))[0].add(step)
    problems += [f"points of {call}: {sorted(have)}" for call, (have, count) in steps.items() if len(have) != count]
    for run, tags in zip(runs["run_id"].to_pylist(), runs["tags"].to_pylist()):
        if len({dict(tags).get(key) for key in TRIPLE}) > 1:
            problems.append(f"tags of {run}: {tags}")
    calls: dict[tuple[int, str, str], int] = {}
    for hlc, writer, field, key, value in zip(*(events[c].to_pylist() for c in events.column_names)):
        if field == "tag" and key in TRIPLE:
            calls[hlc, writer, value] = calls.get((hlc, writer, value), 0) + 1
    # run and shared run may both be in one call; the same call twice is a retry
    problems += [f"events of {call}: {count}" for call, count in calls.items() if count % len(TRIPLE)]
    return problems


def _raw(root: str, table: str, columns: list[str]) -> Any:
    delta = DeltaTable(f"{root}/{table}")
    return delta.to_pyarrow_dataset().to_table(columns=columns)


def work_to_the_end(lake: Lake, history: History, rng: random.Random, path: Path) -> None:
    """Everything a lake does, once, in a fixed order."""
    me = path.stem
    lake.write([Event("run", SHARED_RUN, "attr", key, value) for key, value in _new_run(SHARED_RUN).items()])
    for number in range(4):
        write_once(lake, history, rng, me, number)
    lake.settle()
    history.call(100, lambda: next_version(lake), names="version")
    history.call(101, lambda: take_name(lake, me), names="experiment", name=me)
    for number in range(4, 8):
        write_once(lake, history, rng, me, number)
    lake.refresh()
    lake._journal.own.close()  # as when it is full
    for number in range(8, 12):
        write_once(lake, history, rng, me, number)
    lake.settle()
    lake.compact()
    lake.vacuum(keep=timedelta(0))
    lake.rebuild()
    write_once(lake, history, rng, me, 12)
    lake.close()


ROLES: dict[str, Callable[[Lake, History, random.Random, Path], None]] = {
    "write": write_for_ever,
    "name": name_for_ever,
    "flush": flush_for_ever,
    "race": race_for_ever,
    "maintain": maintain_for_ever,
    "read": read_for_ever,
    "raw": read_raw_for_ever,
    "work": work_to_the_end,
}

# -- dying at a chosen point --------------------------------------------------------------------------------------

POINTS: dict[str, tuple[Any, str]] = {
    "making a segment": (SegmentWriter, "_create"),
    "appending a record": (SegmentWriter, "_write"),
    "syncing a record": (os, "fdatasync"),
    "committing to a log": (Table, "append"),
    "committing to a derived table": (Table, "rewrite"),
    "syncing Delta's files": (Table, "sync_to_disk"),
    "sealing a segment": (Journal, "seal"),
    "removing a segment": (Journal, "remove"),
    "unlinking": (Path, "unlink"),
    "flushing": (Flusher, "flush"),
    "compacting": (Lake, "compact"),
    "vacuuming": (Lake, "_vacuum"),
    "rebuilding": (Lake, "rebuild"),
    "closing": (Lake, "close"),
}


def kill_at(point: str, how: str, nth: int, rng: random.Random) -> None:
    """Have this process killed at its nth call of something: before it, after it, or somewhere within."""
    owner, name = POINTS[point]
    really = getattr(owner, name)
    calls = 0

    def deadly(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != nth:
            return really(*arguments, **named)
        if how == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "torn":  # the first half of the bytes only
            _, segment, record = arguments
            os.write(segment.fd, record[: len(record) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "within":  # the kernel ends the process, whatever it is doing
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, 0.0005 + rng.random() * 0.02)
            result = really(*arguments, **named)
            signal.pause()
            return result
        result = really(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)
