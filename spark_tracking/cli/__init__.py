"""The command `spark-tracking`: one module per command, imported when it is called."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click

from spark_tracking import __version__
from spark_tracking.extras import sentence
from spark_tracking.masking import masked

_COMMANDS = {  # each in the module of its name
    "demo": "Train, register and score on real data, in one go.",
    "lake": "Make, inspect and maintain a lake.",
    "runs": "Delete runs together with what they started.",
    "score": "Score a Delta table with a model into another one.",
    "ui": "Serve MLflow's web UI on a lake, and say where it shows the runs.",
    "sync": "Mirror a tracking server into a lake, or a lake into a server.",
    "cluster": "Write the files that set up a Spark cluster.",
    "doctor": "Tell what of this environment works, and what to do about the rest.",
}
_BAD_INPUT = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")


class _BadInput(click.ClickException):
    """What was given can't be right or isn't there."""

    exit_code = 2


class _LazyGroup(click.Group):
    """Knows its commands by name, so that `--help` and one command never import another one's libraries."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return getattr(import_module(f"spark_tracking.cli.{cmd_name}"), cmd_name) if cmd_name in _COMMANDS else None

    def invoke(self, ctx: click.Context) -> Any:
        """Our errors, MLflow's and missing packages are for the user to read: one message, the exit code by one rule, no traceback."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise click.UsageError(masked(error.message), error.ctx) from error
        except ImportError as error:
            package = (error.name or "spark_tracking").partition(".")[0]
            if package == "spark_tracking" or find_spec(package) is not None:
                raise
            message = sentence("This command", package) if isinstance(error, ModuleNotFoundError) else str(error)
            raise _BadInput(message) from error
        except Exception as error:
            mlflow = sys.modules.get("mlflow.exceptions")
            if mlflow is None or not isinstance(error, mlflow.MlflowException):
                raise
            from spark_tracking.errors import LakeFormatError

            bad = error.error_code in _BAD_INPUT or isinstance(error, LakeFormatError)
            raise (_BadInput if bad else click.ClickException)(masked(str(error.message))) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spark-tracking")
def main() -> None:
    """MLflow tracking as an open lakehouse, on any Spark.

    Exit codes, of every command: 0 done; 1 it was tried and failed, or what was checked is not as it should be; 2 wrong usage, or
    what was named or is needed can't be right or isn't there.

    \b
    Examples:
      spark-tracking demo                     the whole product once, on real data
      spark-tracking lake info ./demo-lake    what a lake holds
      spark-tracking ui ./demo-lake           its runs in MLflow's web UI
      spark-tracking COMMAND --help           what a command takes
    """
