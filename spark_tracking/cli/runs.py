"""`spark-tracking runs`: what MLflow's own command line doesn't do with runs."""

from __future__ import annotations

import json

import click


@click.group()
def runs() -> None:
    """Work with the runs of a lake."""


@runs.command()
@click.argument("run_id")
@click.option("--descendants", is_flag=True, help="Also the run's children, and theirs.")
@click.option("--dry-run", is_flag=True, help="Change nothing, only list what would go.")
@click.option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="The lake; default MLFLOW_TRACKING_URI.")
@click.option("--json", "as_json", is_flag=True, help="Print the ids as a JSON list.")
def delete(run_id: str, descendants: bool, dry_run: bool, tracking_uri: str | None, as_json: bool) -> None:
    """Move a run to the trash, where it can be restored until it is purged.

    \b
    Examples:
      spark-tracking runs delete 01a1fdcd68707112b7837afdf42a479d --descendants --dry-run
      spark-tracking runs delete 01a1fdcd68707112b7837afdf42a479d --tracking-uri delta:///shared/lake
    """
    from spark_tracking.store.trash import delete_run

    ids = delete_run(run_id, descendants, tracking_uri, dry_run)
    if as_json:
        click.echo(json.dumps(ids))
        return
    click.echo("\n".join(ids))
    click.echo(f"{len(ids)} run{'s' if len(ids) > 1 else ''} {'would go' if dry_run else 'moved'} to the trash.", err=True)
