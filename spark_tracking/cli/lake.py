"""`spark-tracking lake`: make, inspect and maintain a lake."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import timedelta

import click
import orjson

from spark_tracking.address import LakeUri
from spark_tracking.lake import Lake, root_folder


@click.group()
def lake() -> None:
    """Make, inspect and maintain a lake.

    PATH is a folder, or any URI that names a lake (delta:///shared/lake, s3://bucket/lake).

    \b
    Examples:
      spark-tracking lake init ./lake
      spark-tracking lake info ./lake
      spark-tracking lake check ./lake && echo all right
      spark-tracking lake vacuum ./lake --dry-run
    """


_path = click.argument("path")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")


@lake.command()
@_path
def init(path: str) -> None:
    """Make a lake; one that is there stays as it is."""
    uri = LakeUri.parse(path)
    root_folder.ensure(uri, create=True)  # which, other than `open`, leaves it to us to say so
    Lake.open(uri, create=True)
    click.echo(f"The lake at {uri.root} is ready. Track to it with:\n\n  export MLFLOW_TRACKING_URI={uri}")


@lake.command()
@_path
@_json
def info(path: str, as_json: bool) -> None:
    """Tables with versions, rows, files and sizes."""
    tables = Lake.open(path).info()
    if as_json:
        click.echo(orjson.dumps([asdict(table) for table in tables], option=orjson.OPT_INDENT_2))
        return
    click.echo(f"{LakeUri.parse(path)}\n\n{'table':<26}{'rows':>12}{'files':>8}{'MB':>10}{'version':>9}")
    for t in tables:
        click.echo(f"{t.name:<26}{t.rows:>12,}{t.files:>8,}{t.size / 1e6:>10.1f}{t.version:>9}")


@lake.command()
@_path
def refresh(path: str) -> None:
    """Bring the tables up to everything that was ever acknowledged, for raw readers."""
    click.echo(f"Refreshed; {Lake.open(path).refresh()} rows changed.")


@lake.command()
@_path
@click.option("--force", is_flag=True, help="Go on where something is lost for good; a copy of what is left is kept in the lake.")
def rebuild(path: str, force: bool) -> None:
    """Make the derived tables anew from the logs, which get back what they lost and other files still have."""
    done = Lake.open(path).rebuild(force)
    for name, rows in done.restored.items():
        click.echo(f"{name} got {rows:,} lost rows back.")
    for kept in done.set_aside:
        click.echo(f"Set aside: {kept}")
    click.echo(f"Rebuilt from the logs, which know {done.things:,} things.")


@lake.command("check")
@_path
@_json
def check_(path: str, as_json: bool) -> None:
    """Prove that what readers see is what was acknowledged. Exit code 1 when it is not."""
    report = Lake.open(path).check()
    if as_json:
        click.echo(orjson.dumps(asdict(report), option=orjson.OPT_INDENT_2))
    else:
        counted = ", ".join(f"{count:,} {kind.replace('_', ' ')}s" for kind, count in report.counted.items())
        click.echo(f"Rebuilt from journal and logs: {counted or 'nothing, as tables cannot be read'}.")
        for line in report.notes:
            click.echo(f"note: {line}")
        for line in report.problems:
            click.echo(f"PROBLEM: {line}", err=True)
        right = "All as acknowledged, but for the notes." if report.notes else "All as acknowledged."
        click.echo(right if report.ok else "There are problems; see above.")
    sys.exit(0 if report.ok else 1)


@lake.command()
@_path
def compact(path: str) -> None:
    """Merge small files into large ones."""
    for name, count in Lake.open(path).compact().items():
        click.echo(f"{name:<26}{count:>6} files merged")


@lake.command()
@_path
@_dry_run
@click.option("--keep-hours", type=click.FloatRange(min=0), default=24.0, show_default=True, help="Keep what was in use since.")
@click.option("--foreign", is_flag=True, help="Also delete what others put into the tables' folders.")
def vacuum(path: str, dry_run: bool, keep_hours: float, foreign: bool) -> None:
    """Remove files that no recent version of a table uses. What others put there is named, and stays."""
    opened = Lake.open(path)
    removed = opened.vacuum(timedelta(hours=keep_hours), dry_run)
    for name, files in removed.items():
        click.echo(f"{name:<26}{len(files):>6} files {'would go' if dry_run else 'removed'}")
    done = ("would go" if dry_run else "removed") if foreign else "not the lake's; it stays (--foreign deletes it)"
    for name, entries in opened.foreign(remove=foreign and not dry_run).items():
        for entry in entries:
            click.echo(f"{name}/{entry}: {done}")


@lake.command()
@_path
@_dry_run
@click.option("--older-than-days", type=click.FloatRange(min=0), default=None, help="Default: the retention, 30 days.")
def purge(path: str, dry_run: bool, older_than_days: float | None) -> None:
    """Delete for good what has been in the trash longer than the retention, artifacts included."""
    from spark_tracking.store.trash import purge_deleted

    purged = purge_deleted(path, older_than_days, dry_run)
    for kind, ids in purged.items():
        click.echo(f"{kind:<26}{len(ids):>6} {'would go' if dry_run else 'purged'}")
    for line in purged.kept:
        click.echo(f"KEPT: {line}", err=True)
    sys.exit(1 if purged.kept else 0)


@lake.command()
@_path
@_dry_run
@_json
@click.option("--older-than-days", type=click.FloatRange(min=0), default=None, help="How long the trash is kept; default 30 days.")
@click.option("--keep-hours", type=click.FloatRange(min=0), default=24.0, show_default=True, help="Keep files that were in use since.")
def maintain(path: str, dry_run: bool, as_json: bool, older_than_days: float | None, keep_hours: float) -> None:
    """All of refresh, purge, compact and vacuum, for a scheduler; what was done as a table."""
    from spark_tracking.store.maintain import maintain as run

    done = run(path, older_than_days=older_than_days, keep_hours=keep_hours, dry_run=dry_run)
    click.echo(orjson.dumps(asdict(done)) if as_json else str(done))


@lake.command()
@_path
@click.option("--catalog", help="The catalog; default: the session's current one.")
@click.option("--schema", default="mlflow", show_default=True, help="The schema (database) that takes the tables.")
@click.option("--execute", is_flag=True, help="Run it in a local Spark, whose catalog lies in the current folder (./metastore_db).")
def register(path: str, catalog: str | None, schema: str, execute: bool) -> None:
    """Print SQL that makes the lake's tables visible in a Spark catalog, as external Delta tables; or run it.

    \b
    Examples:
      spark-tracking lake register ./lake --schema mlflow > register.sql && spark-sql -f register.sql
      spark-tracking lake register ./lake --execute
    """
    from spark_tracking.sources import catalog as tables

    if not execute:
        click.echo("".join(f"{statement};\n" for statement in tables.statements(path, catalog, schema)), nl=False)
        return
    from spark_tracking.spark.local import local_spark

    spark = local_spark("spark-tracking register", settings={"spark.sql.catalogImplementation": "hive"})
    try:
        for name in tables.register(spark, path, catalog, schema):
            click.echo(f"{name:<40}{spark.table(name).count():>12,} rows")
    finally:
        spark.stop()
