"""`spark-tracking score`: score a table from a shell or a scheduler, and see which model wrote what."""

from __future__ import annotations

import json
from typing import Any

import click

_MODES = ["append", "overwrite", "overwrite_partitions", "merge"]


@click.command()
@click.argument("model_uri", required=False)
@click.argument("source", required=False)
@click.argument("target", required=False)
@click.option("--history", "history_of", metavar="TARGET", help="Show which model wrote what into a Delta table, and do nothing else.")
@click.option("--where", help="SQL condition on the source's rows.")
@click.option("--keep", help="Comma-separated source columns that go along; default: all.")
@click.option("--inputs", help="Comma-separated source columns that the model gets; default: those of its signature.")
@click.option("--mode", type=click.Choice(_MODES), default="append", show_default=True, help="How the target changes.")
@click.option("--keys", help="For merge: comma-separated columns that tell rows apart.")
@click.option("--partition-by", help="Comma-separated columns that partition a new target.")
@click.option("--strategy", type=click.Choice(["auto", "files", "udf"]), default="auto", show_default=True)
@click.option("--version", type=int, help="Version of a Delta source; default: the newest.")
@click.option("--timestamp", help="Instead of a version, the Delta source as of this time.")
@click.option("--since", help="'last': only what the source gained since this job's last run; or a version number.")
@click.option("--job", help="The job's name; the same work under a name is committed once.")
@click.option("--method", default="predict", show_default=True, help="Method of the logged model, such as predict_proba.")
@click.option("--result-type", help="Spark type of the prediction; default: what the signature says.")
@click.option("--prediction", default="prediction", show_default=True, help="Name of the prediction's column.")
@click.option("--params", callback=lambda _context, _param, text: _parameters(text), help="Inference parameters, as a JSON object.")
@click.option("--on-error", type=click.Choice(["fail", "null", "report"]), default="fail", show_default=True)
@click.option("--nulls", type=click.Choice(["model", "skip", "error"]), default="model", show_default=True)
@click.option("--model-columns", is_flag=True, help="Add model_version and scored_at to each row.")
@click.option("--track", is_flag=True, help="Record an MLflow run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def score(
    model_uri: str | None,
    source: str | None,
    target: str | None,
    history_of: str | None,
    keep: str | None,
    inputs: str | None,
    keys: str | None,
    partition_by: str | None,
    since: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Score the table SOURCE with the model MODEL_URI into the Delta table TARGET.

    Runs in a local Spark inside this process. The tracking server is MLFLOW_TRACKING_URI. Exit code 0 also if there
    was nothing new.

    \b
    Examples:
      spark-tracking score models:/wine@champion ./wine ./scored --keep id
      spark-tracking score models:/wine@champion ./wine ./scored --since last --job nightly --json
      spark-tracking score --history ./scored
    """
    if history_of is not None:
        _show_history(history_of, as_json)
        return
    if model_uri is None or source is None or target is None:
        raise click.UsageError("Give MODEL_URI, SOURCE and TARGET, or --history TARGET.")
    from spark_tracking.scoring import score_table
    from spark_tracking.spark.session import running_or_local

    options |= {"keep": _names(keep), "inputs": _names(inputs), "keys": _names(keys) or [], "partition_by": _names(partition_by) or []}
    try:
        options["since"] = int(since) if since and since != "last" else since
    except ValueError:
        raise click.BadParameter("expected 'last' or a version number", param_hint="--since") from None
    with running_or_local("spark-tracking score") as spark:
        result = score_table(spark, model_uri, source, target, **options)
    click.echo(json.dumps(result.to_dict()) if as_json else str(result))


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _parameters(text: str | None) -> dict[str, Any] | None:
    try:
        found = json.loads(text) if text else None
    except ValueError:
        found = text
    if isinstance(found, (dict, type(None))):
        return found
    raise click.BadParameter(f"expected a JSON object, such as '{{\"alpha\": 0.1}}', not {text!r}")


def _show_history(target: str, as_json: bool) -> None:
    from spark_tracking.scoring.commits import history

    commits = history(target)
    if as_json:
        click.echo(json.dumps([commit.to_dict() for commit in commits]))
        return
    if not commits:
        click.echo(f"No scoring job wrote into {target}.")
    for commit in commits:
        facts = commit.facts
        model = f"{facts['model_name']} version {facts['model_version']}" if facts["model_name"] else facts["model_uri"]
        rows = "" if commit.rows is None else f"{commit.rows:,} rows"
        source = facts["source"] + ("" if facts["source_version"] is None else f" version {facts['source_version']}")
        click.echo(f"{commit.version:>4}  {commit.time:%Y-%m-%d %H:%M:%S}  {model}  {rows}  {facts['mode']}  from {source}")
