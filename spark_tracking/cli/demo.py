"""`spark-tracking demo`."""

from __future__ import annotations

import click

from spark_tracking.extras import require


@click.command()
@click.option("--lake", default="demo-lake", show_default=True, help="The lake's folder; made if it does not exist.")
def demo(lake: str) -> None:
    """Train, register and score on real data, in one go.

    Needs a JDK 17 or newer, and `pip install 'spark-tracking[spark,server]'`. Running it again adds to the lake.

    \b
    Examples:
      spark-tracking demo
      spark-tracking demo --lake /tmp/lake
    """
    require("The demo", "pyspark", "delta", "sklearn")
    from spark_tracking.examples.demo import run_demo
    from spark_tracking.spark.delta_jars import java

    java()  # said before anything is made or trained
    run_demo(lake)
