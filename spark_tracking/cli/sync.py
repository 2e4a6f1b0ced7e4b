"""`spark-tracking sync`: a tracking server into a lake, from a shell or a scheduler."""

from __future__ import annotations

import os
import sys
from typing import Any

import click
import orjson

FAILURES_SHOWN = 20


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("--experiment", "experiments", multiple=True, metavar="NAME", help="Only this experiment, by name or id; may be repeated.")
@click.option("--filter", metavar="FILTER", help="Only runs that satisfy this, in MLflow's filter language.")
@click.option("--since", metavar="TIME", help="Only runs that started at or after this time (ISO 8601, or milliseconds since 1970).")
@click.option("--models", default="all", show_default=True, metavar="all|none|NAMES", help="Registered models, or comma-separated names.")
@click.option("--artifacts", type=click.Choice(["copy", "reference", "none"]), default="reference", show_default=True)
@click.option("--source-name", help="What names the source in the lake, where its URI may change; must then stay the same.")
@click.option("--requests-per-second", type=click.FloatRange(min=0, min_open=True), help="At most so many requests a second, to a server.")
@click.option("--requests-at-once", type=click.IntRange(min=1), default=4, show_default=True, help="At most so many requests under way.")
@click.option("--verify", is_flag=True, help="Compare everything, metric histories too, not only what the listings show as changed.")
@click.option("--follow", "every", is_flag=False, flag_value=60.0, type=click.FloatRange(min=0), help="Again every so many seconds (60).")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--force", is_flag=True, help="Go on where the source has lost more than half of what it had at the last sync.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one line a sync.")
@click.option("--quiet", is_flag=True, help="No progress.")
def sync(source: str, target: str, every: float | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Bring experiments, runs, metrics and models of SOURCE to TARGET.

    SOURCE is a tracking URI: a lake (its folder or delta:///…), an MLflow database (sqlite:///…, postgresql://…), a server (http://…,
    databricks), an mlruns/ folder, or a folder of Delta tables in the layout of system.mlflow. TARGET is a lake's URI or folder, or a
    server. Doing it again copies what changed since, and nothing else.

    Exit codes: 0 all there, 1 some things could not be copied (they are listed, and tried again next time), 2 wrong usage.

    \b
    Examples:
      spark-tracking sync sqlite:////srv/mlflow.db ./lake
      spark-tracking sync http://mlflow:5000 s3://bucket/lake --artifacts copy --json
      spark-tracking sync ./lake http://mlflow:5000
      spark-tracking sync databricks ./lake --experiment /Users/me/churn --follow 300 --requests-per-second 5
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one bar for each file, of MLflow's
    from tqdm import tqdm

    from spark_tracking.mirror import follow, sync

    with tqdm(unit=" runs", disable=quiet or as_json or not sys.stderr.isatty(), file=sys.stderr, leave=False) as bar:

        def progress(kind: str, count: int) -> None:
            if kind == "runs to go" and count:
                bar.reset(count)
            elif kind == "run":
                bar.update(count)

        options["progress"] = progress
        try:
            ok = True
            for result in [sync(source, target, **options)] if every is None else follow(source, target, every, **options):
                bar.clear()
                click.echo(orjson.dumps(result.as_dict()) if as_json else _table(result))
                ok = result.ok
        except KeyboardInterrupt:
            sys.exit(130)
    sys.exit(0 if ok else 1)


def _table(result: Any) -> str:
    lines = [f"{result.source} -> {result.target}{' (dry run)' if result.dry_run else ''}\n"]
    lines.append(f"{'':<20}{'seen':>10}{'new':>10}{'changed':>10}{'failed':>10}")
    for kind, tally in result.things.items():
        lines.append(f"{kind.replace('_', ' ') + 's':<20}{tally.seen:>10,}{tally.new:>10,}{tally.changed:>10,}{tally.failed:>10,}")
    lines.append(f"{'points':<20}{'':>10}{result.points:>10,}")
    if result.files:
        lines.append(f"{'files':<20}{'':>10}{result.files:>10,}   {result.bytes / 1e6:,.1f} MB")
    lines.append(f"\n{result.seconds:,.1f} s, {result.things['run'].seen / max(result.seconds, 1e-9):,.0f} runs/s")
    for failure in result.failures[:FAILURES_SHOWN]:
        lines.append(f"FAILED {failure.kind} {failure.id}: {failure.reason}")
    if len(result.failures) > FAILURES_SHOWN:
        lines.append(f"… and {len(result.failures) - FAILURES_SHOWN} more; --json lists all.")
    return "\n".join(lines)
