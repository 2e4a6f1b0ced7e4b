"""The documented command line is the real one, and each command helps with an example."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from spark_tracking import __version__
from spark_tracking.cli import main
from spark_tracking.lake import Lake

ROOT = Path(__file__).parents[2]


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The words of every command that does something."""
    found: list[tuple[str, ...]] = []
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        found += leaves(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


COMMANDS = leaves(main)


def test_the_documented_help_is_that_of_the_commands() -> None:
    spec = importlib.util.spec_from_file_location("cli_help", ROOT / "scripts" / "cli_help.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "cli.md").read_text() == module.document(), "run: python scripts/cli_help.py > docs/cli.md"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_helps_with_an_example_of_its_own_or_its_groups(command: tuple[str, ...]) -> None:
    own, groups = (CliRunner().invoke(main, [*words, "--help"]) for words in (command, command[:-1] or command))
    assert own.exit_code == groups.exit_code == 0
    assert "Example" in own.output + (groups.output if len(command) > 1 else "")


def test_the_version_is_the_packages() -> None:
    assert CliRunner().invoke(main, ["--version"]).output.strip().endswith(__version__)


def test_an_unknown_command_is_a_usage_error_that_names_it() -> None:
    told = CliRunner().invoke(main, ["no-such-command"])
    assert told.exit_code == 2
    assert "no-such-command" in told.output


def test_help_loads_no_command_and_so_none_of_their_libraries() -> None:
    code = (
        "import sys\nfrom spark_tracking.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted(name for name in sys.modules if name.startswith('spark_tracking.cli.')), 'mlflow' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "[] False"


BAD_INPUT = {
    **{
        f"lake {name} nolake": "There is no lake at"
        for name in ("info", "refresh", "rebuild", "check", "compact", "vacuum", "purge", "maintain")
    },
    "lake register nolake": "There is no lake at",
    "lake init delta://host/x": "delta://host/x",
    "ui nolake": "There is no lake at",
    "runs delete nope --tracking-uri lake": "Run with id=nope not found",
    "runs delete nope --tracking-uri nolake": "There is no lake at",
    "sync lake lake": "lake",
    "sync nosource mirror": "nosource",
    "sync lake mirror --since yesterday": "ISO 8601",
    "score models:/wine/1": "Give MODEL_URI, SOURCE and TARGET",
    "score --history nowhere": "no Delta table at 'nowhere'",
    "cluster config --set nonsense": "NAME=VALUE",
    "cluster env --set nonsense": "NAME=VALUE",
    "cluster policy --set nonsense": "NAME=VALUE",
}
FAILED = {
    "demo": "Spark needs Java",
    "sync lake http://127.0.0.1:1": "http://127.0.0.1:1",
    "lake check broken": "PROBLEM",
    "doctor --read-only": "http://127.0.0.1:1",
}


@pytest.fixture
def a_lake(tmp_path: Path) -> None:
    """A lake `lake`, and `broken`, whose log lacks a file."""
    for name in ("lake", "broken"):
        lake = Lake.open(str(tmp_path / name), create=True)
        lake.refresh()
    next(tmp_path.glob("broken/events/*.parquet")).unlink()


@pytest.mark.parametrize("words", [*(" ".join(command) + " --no-such-option" for command in COMMANDS), *BAD_INPUT])
@pytest.mark.usefixtures("a_lake")
def test_wrong_usage_and_bad_input_exit_with_2(words: str) -> None:
    told = CliRunner().invoke(main, words.split())
    assert (told.exit_code, BAD_INPUT.get(words, "No such option") in told.output) == (2, True), told.output
    assert not isinstance(told.exception, Exception), told.exception


@pytest.mark.parametrize("words", FAILED)
@pytest.mark.usefixtures("a_lake")
def test_what_was_tried_and_failed_exits_with_1(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "/no/such/java")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    told = CliRunner().invoke(main, words.split())
    assert (told.exit_code, FAILED[words] in told.output) == (1, True), told.output
    assert not isinstance(told.exception, Exception), told.exception
