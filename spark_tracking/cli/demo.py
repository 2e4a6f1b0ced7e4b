"""`spark-tracking demo`."""

from __future__ import annotations

import click


@click.command()
@click.option("--lake", default="demo-lake", show_default=True, help="The lake's folder; made if it does not exist.")
def demo(lake: str) -> None:
    """Train, register and score on real data, in one go.

    Needs a JDK 17 or newer, and `pip install 'spark-tracking[spark]' mlflow scikit-learn`. Running it again adds to the lake.

    \b
    Examples:
      spark-tracking demo
      spark-tracking demo --lake /tmp/lake
    """
    from spark_tracking.jobs.demo import run_demo

    run_demo(lake)
