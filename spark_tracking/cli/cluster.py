"""`spark-tracking cluster`."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from spark_tracking.cluster.platforms import Settings


@click.group()
def cluster() -> None:
    """Write the files that set up a Spark cluster.

    Settings come from options, else from the SPARK_TRACKING_* variables of this shell; they are checked as a start checks them.

    \b
    Examples:
      spark-tracking cluster script > spark-tracking-init.sh
      spark-tracking cluster policy --uri https://mlflow.example.com --secret MLFLOW_TRACKING_TOKEN=ml/token \\
          --package /Volumes/main/ml/wheels/spark_tracking-0.1.0-py3-none-any.whl \\
          --init-script /Volumes/main/ml/init/spark-tracking-init.sh
      spark-tracking cluster config --platform emr --uri delta+s3://bucket/lake
      eval "$(spark-tracking cluster env --uri delta:///shared/lake)"
    """


def _settings_options(command: Any) -> Any:
    for option in (
        click.option("--uri", help="The tracking server: databricks, http(s)://…, delta+abfss://…, azureml://…"),
        click.option("--registry-uri", help="The model registry, if it is another server."),
        click.option("--experiment", help="The experiment of processes that name none; may hold {user}, {job}, {notebook}, {cluster}."),
        click.option("--package", help="What to install: a requirement, or a wheel's path."),
        click.option("--strict/--no-strict", default=None, help="Wrong settings fail the start instead of leaving tracking as it was."),
        click.option("--set", "more", multiple=True, metavar="NAME=VALUE", help="Another variable, such as AZURE_TENANT_ID."),
        click.option("--secret", "secrets", multiple=True, metavar="NAME=SCOPE/KEY", help="A variable from a secret scope."),
        click.option("--init-script", default="", help="Where the init script lies: /Volumes/…, /Workspace/…, abfss://, s3://, gs://."),
    ):
        command = option(command)
    return command


@cluster.command()
@_settings_options
@click.option("--name", default="spark-tracking", show_default=True, help="The policy's name.")
@click.option("--definition", is_flag=True, help="Print the definition alone, as the web page takes it.")
def policy(name: str, definition: bool, **options: Any) -> None:
    """Print a Databricks compute policy: the body of POST /api/2.0/policies/clusters/create.

    \b
    Example:
      spark-tracking cluster policy --uri https://mlflow.example.com --init-script /Volumes/main/ml/init/spark-tracking-init.sh \\
          > policy.json && databricks cluster-policies create --json @policy.json
    """
    from spark_tracking.cluster.platforms import databricks_policy

    request = databricks_policy(_settings(options), name)
    click.echo(request["definition"] if definition else json.dumps(request, indent=2))


@cluster.command("config")
@_settings_options
@click.option("--platform", type=click.Choice(["databricks", "emr", "synapse", "spark"]), default="databricks", show_default=True)
def configuration(platform: str, **options: Any) -> None:
    """Print the settings as a platform takes them.

    databricks: new_cluster and libraries of a job. emr: --configurations. synapse, spark: properties, one a line.

    \b
    Examples:
      spark-tracking cluster config --uri databricks --init-script /Volumes/main/ml/init/spark-tracking-init.sh
      spark-tracking cluster config --platform spark --uri http://mlflow:5000 >> conf/spark-defaults.conf
    """
    from spark_tracking.cluster import platforms

    settings = _settings(options)
    documents = {"databricks": platforms.databricks_cluster, "emr": platforms.emr_configurations}
    if platform in documents:
        click.echo(json.dumps(documents[platform](settings), indent=2))
    else:
        click.echo("\n".join(f"{name} {value}" for name, value in platforms.spark_properties(settings).items()))


@cluster.command()
@_settings_options
@click.option("--format", "form", type=click.Choice(["shell", "json", "kernel"]), default="shell", show_default=True)
def env(form: str, **options: Any) -> None:
    """Print the variables that a start would set; remarks go to standard error.

    kernel: the `env` entry of a Jupyter kernel's kernel.json, for a driver that no spark-env.sh reaches.

    \b
    Example:
      eval "$(spark-tracking cluster env --uri delta:///shared/lake --experiment 'team/{user}')"
    """
    from spark_tracking.cluster.environment import exports, plan_for

    plan = plan_for({**os.environ, **_settings(options).variables})
    for note in plan.notes:
        click.echo(f"note: {note}", err=True)
    if form == "shell":
        click.echo(exports(plan), nl=False)
    else:
        variables = dict(plan.variables)
        click.echo(json.dumps({"env": variables} if form == "kernel" else variables, indent=2))


@cluster.command()
def script() -> None:
    """Print the init script that belongs to this version.

    \b
    Example:
      spark-tracking cluster script > /Volumes/main/ml/init/spark-tracking-init.sh
    """
    from importlib.resources import files

    click.echo(files("spark_tracking.cluster").joinpath("spark-tracking-init.sh").read_text(), nl=False)


def _settings(options: dict[str, Any]) -> Settings:
    from spark_tracking import config
    from spark_tracking.cluster.platforms import Settings

    left_behind = (config.CONFIGURED.name, config.ENV_FILE.name, config.PROBLEM.name)
    variables = {name: text for name, text in os.environ.items() if name.startswith("SPARK_TRACKING_") and name not in left_behind}
    for option in ("uri", "registry_uri", "experiment", "package", "strict"):
        if (value := options[option]) is not None:
            variables[f"SPARK_TRACKING_{option.upper()}"] = str(value).lower() if option == "strict" else value
    return Settings({**variables, **_pairs(options["more"])}, _pairs(options["secrets"]), options["init_script"])


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = dict(text.partition("=")[::2] for text in texts)
    if wrong := [name for name, value in pairs.items() if not name.isidentifier() or not value]:
        raise click.UsageError(f"'{wrong[0]}' is not of the form NAME=VALUE.")
    return pairs
