"""The command `spark-tracking`: one module per command, imported when it is called."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click

from spark_tracking import __version__
from spark_tracking.masking import masked

_HOMES = {  # those whose module is not there yet are not shown
    "demo": ("spark_tracking.cli.demo:demo", "Train, register and score on real data, in one go."),
    "lake": ("spark_tracking.cli.lake:lake", "Make, inspect and maintain a lake."),
    "runs": ("spark_tracking.cli.runs:runs", "Delete runs together with what they started."),
    "score": ("spark_tracking.cli.score:score", "Score a Delta table with a model into another one."),
    "sync": ("spark_tracking.cli.sync:sync", "Mirror a tracking server into a lake, or a lake into a server."),
    "cluster": ("spark_tracking.cli.cluster:cluster", "Write the files that set up a Spark cluster."),
    "doctor": ("spark_tracking.cli.doctor:doctor", "Tell what of this environment works, and what to do about the rest."),
}


class _LazyGroup(click.Group):
    """Knows its commands by name, so that `--help` and one command never import another one's libraries."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, (home, _) in _HOMES.items() if find_spec(home.partition(":")[0])]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module, _, attribute = _HOMES[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Our errors, and MLflow's, are for the user to read: one message and exit code 1, no traceback."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise click.UsageError(masked(error.message), error.ctx) from error
        except Exception as error:
            mlflow = sys.modules.get("mlflow.exceptions")
            if mlflow is not None and isinstance(error, mlflow.MlflowException):
                raise click.ClickException(masked(str(error))) from error
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _HOMES[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spark-tracking")
def main() -> None:
    """MLflow tracking as an open lakehouse, on any Spark.

    \b
    Examples:
      spark-tracking demo                     the whole product once, on real data
      spark-tracking lake info ./demo-lake    what a lake holds
      spark-tracking COMMAND --help           what a command takes
    """
