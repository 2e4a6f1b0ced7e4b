"""A lake that an earlier version writes to is read, continued, maintained and checked by this one meanwhile, and the other way round."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
STEPS = 120
VERSIONS = {"the first format 1": "3f694c3", "before the redesign": "dcc3829"}


class Actor:
    """A process with a version of the package."""

    def __init__(self, tree: Path, uri: str) -> None:
        command = [sys.executable, str(ROOT / "tests/lake/taking_turns.py"), uri]
        paths = {**os.environ, "PYTHONPATH": str(tree)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=paths, cwd=tree)

    def ask(self, *call: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self, kill: bool = False) -> None:
        assert self.process.stdin is not None
        if kill:
            self.process.kill()
        self.process.stdin.close()
        self.process.wait(timeout=120)


def unpacked(commit: str, into: Path) -> Path:
    """The package as it was at a commit."""
    packed = subprocess.run(["git", "archive", commit, "spark_tracking"], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:
        pytest.skip(f"the history with {commit} is not here: {packed.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(into, filter="data")
    return into


@pytest.mark.slow
@pytest.mark.parametrize("commit", VERSIONS.values(), ids=VERSIONS)
def test_processes_of_two_versions_take_turns_on_one_lake_under_kills(commit: str, tmp_path: Path) -> None:
    trees = {"old": unpacked(commit, tmp_path / "old"), "new": ROOT}
    uri, rng = f"delta://{tmp_path / 'lake'}", random.Random(commit)
    actors = {who: Actor(tree, uri) for who, tree in trees.items()}
    logged: dict[str, list[int]] = {}
    tags: dict[str, str] = {}
    step = 0

    def both_see_all() -> None:
        for actor in actors.values():
            assert actor.ask("find") == sorted(logged)
            for run, steps in logged.items():
                assert actor.ask("read", run) == [tags.get(run), max(steps, default=None), sorted(steps)]

    for number in range(STEPS):
        who = rng.choice(["old", "new"])
        what = rng.choice(["create", "points", "points", "tag", "tag", "read", "flush", "refresh", "kill", "close", "look"])
        if what == "create" or not logged:
            logged[f"r{number}"] = []
            actors[who].ask("create", f"r{number}")
        elif what in ("points", "tag"):
            run, steps = rng.choice(list(logged)), list(range(step, step + rng.choice([1, 3])))
            step += len(steps)
            tags |= {run: f"t{number}"} if what == "tag" else {}
            actors[who].ask("write", run, steps, tags[run] if what == "tag" else None)
            logged[run] += steps
        elif what == "read":
            run = rng.choice(list(logged))
            assert actors[who].ask("read", run) == [tags.get(run), max(logged[run], default=None), sorted(logged[run])]
        elif what == "kill":
            actors[who].end(kill=True)
            actors[who] = Actor(trees[who], uri)
        elif what == "look":
            both_see_all()
        else:
            actors[who].ask(what)
    both_see_all()
    assert [actor.ask("check") for actor in actors.values()] == [[], []]
    for actor in actors.values():
        actor.end()
    assert not list((tmp_path / "lake" / "_journal").glob("*.seg"))
