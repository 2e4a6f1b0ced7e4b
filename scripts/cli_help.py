"""Print docs/cli.md: the help of every command, as the command line shows it.

Run it after a change to a command: `.venv/bin/python scripts/cli_help.py > docs/cli.md`. A test checks for drift.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from spark_tracking.cli import main


def pages(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[str]:
    """The command's help as Markdown, then that of its subcommands."""
    settings: dict[str, Any] = {**command.context_settings, "terminal_width": 100, "max_content_width": 100}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from pages(found, child, context)


def document() -> str:
    """The whole file."""
    return "# The command line\n\nMade by `scripts/cli_help.py`.\n\n" + "\n".join(pages(main, "spark-tracking"))


if __name__ == "__main__":
    print(document(), end="")
