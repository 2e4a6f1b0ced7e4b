"""Versions of this package from the repository's history and this one take turns on one lake, all at once, under kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from tests.crash.proof import prove
from tests.crash.test_chaos import FEW, Chaos

ROOT = Path(__file__).parents[2]
VERSIONS = {"3f694c3": "before issue G", "dcc3829": "before the redesign"}
START = "import json, sys; from tests.crash.worker import main; main(*json.loads(sys.argv[1]))"


@pytest.fixture(scope="session", params=VERSIONS, ids=lambda commit: VERSIONS[commit].replace(" ", "-"))
def old_version(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of an older commit."""
    tree = tmp_path_factory.mktemp(request.param)
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", request.param], capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"this checkout has no history with {request.param}: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    return tree


def environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree)}  # found before what is installed


class OldProcess:
    """A crash worker of an older version, with what `Chaos` needs of a multiprocessing.Process."""

    def __init__(self, tree: Path, arguments: tuple[object, ...]) -> None:
        self._command, self._tree = [sys.executable, "-c", START, json.dumps(arguments)], tree

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=self._tree, env=environment(self._tree))

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        self._process.kill()

    def join(self) -> None:
        self._process.wait()


class Mixed(Chaos):
    """Every other process is of the older version."""

    tree: Path

    def process(self, *arguments: Any) -> Any:
        return super().process(*arguments) if self.started % 2 else OldProcess(self.tree, arguments)


def check(tree: Path, uri: str) -> None:
    """`lake check` of a version says that all is well."""
    command = [sys.executable, "-c", "from spark_tracking.cli import main; main()", "lake", "check", uri]
    done = subprocess.run(command, cwd=tree, env=environment(tree), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_old_and_new_processes_take_turns_on_one_lake(
    processes: ForkServerContext, lake_uri: str, histories: Path, old_version: Path
) -> None:
    told = subprocess.run(
        [sys.executable, "-c", "import spark_tracking; print(spark_tracking.__file__)"],
        cwd=old_version, env=environment(old_version), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert told.startswith(str(old_version)), "the older version is the one that runs"
    first = OldProcess(old_version, ("work", lake_uri, 0, str(histories / "write.jsonl"), {}))
    first.start()
    first.join()
    assert first.exitcode == 0
    Mixed.tree = old_version
    chaos = Mixed(processes, lake_uri, histories, FEW, seed=int(os.environ.get("SEED", "1")))
    chaos.keep_killing(seconds=40, pause=0.5)
    recorded = prove(lake_uri, histories)  # by the new version
    assert not chaos.failed
    assert chaos.killed >= 5 and len(recorded.acknowledged) >= 100 and recorded.looks >= 10
    check(old_version, lake_uri)
    check(ROOT, lake_uri)
