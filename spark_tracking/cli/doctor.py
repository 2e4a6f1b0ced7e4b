"""`spark-tracking doctor`."""

from __future__ import annotations

import click


@click.command()
@click.option("--spark", "with_spark", is_flag=True, help="Look at every executor of a Spark cluster, too.")
@click.option("--master", help="The cluster for --spark: spark://host:7077, local[2], sc://host; by default Spark's own configuration.")
@click.option("--read-only", is_flag=True, help="Do not create (and delete) a run to prove that we may write.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(with_spark: bool, master: str | None, read_only: bool, as_json: bool) -> None:
    """Tell what of this environment works, and what to do about the rest.

    Which tracking server, registry, experiment and credentials apply, by which rule; whether the server can be read and
    written; whether the installed versions go together. No secret is shown.

    Exit code: 0 when nothing is wrong (warnings included), 1 when something is.

    \b
    Examples:
      spark-tracking doctor
      spark-tracking doctor --json --read-only
      spark-tracking doctor --spark --master spark://host:7077
    """
    from spark_tracking.cluster.doctor import doctor as examine

    report = examine(master or "" if with_spark or master else None, read_only=read_only)
    click.echo(report.to_json() if as_json else str(report))
    raise SystemExit(0 if report.healthy else 1)
