"""The sources registered on a session, with what the user's process says, since none of ours runs there at `load()`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spark_tracking.sources.defaults import Defaults, send_defaults
from spark_tracking.spark.pythons import check_workers
from spark_tracking.spark.session import is_connect
from spark_tracking.spark.ship import ensure_package

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def register(session: SparkSession, defaults: Defaults) -> None:
    """Let `mlflow` and `mlflow-experiment` of this session read what `defaults` say where options say nothing.

    Raises:
        InvalidState: Spark's workers run a Python without this package.
    """
    from pyspark.errors import AnalysisException

    from spark_tracking.sources.datasource import ExperimentSource, MlflowSource

    if is_connect(session):
        ensure_package(session)
    else:
        check_workers(session)
    try:
        for source in (MlflowSource, ExperimentSource):
            # a class that is in no module, so that it is pickled with its values and not by name
            session.dataSource.register(type(source.__name__, (source,), {"defaults": defaults, "__doc__": source.__doc__}))
    except AnalysisException as error:
        if error.getCondition() != "DATA_SOURCE_ALREADY_EXISTS":
            raise
        send_defaults(session, defaults)
