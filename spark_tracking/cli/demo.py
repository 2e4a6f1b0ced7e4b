"""`spark-tracking demo`."""

from __future__ import annotations

from importlib.util import find_spec

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
    missing = [name for name in ("pyspark", "delta", "sklearn") if find_spec(name) is None]
    if missing:
        raise click.ClickException(f"The demo needs {', '.join(missing)} too. Run: pip install 'spark-tracking[spark]' mlflow scikit-learn")
    from spark_tracking.jobs.delta_jars import java
    from spark_tracking.jobs.demo import run_demo

    java()  # said before anything is made or trained
    run_demo(lake)
