"""MLflow tracking as an open lakehouse, on any Spark.

What users call is exported here and imported on first use, so that `import spark_tracking` stays cheap and needs neither
pyspark nor deltalake:

    import spark_tracking as st
    spark = st.local_spark()
    st.use(spark)
    st.score_table(spark, "models:/wine@champion", source="/data/wine", target="/data/scored")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark_tracking.cluster.doctor import doctor as doctor
    from spark_tracking.cluster.executors import executor_run as executor_run
    from spark_tracking.cluster.executors import executor_tracking as executor_tracking
    from spark_tracking.cluster.use import use as use
    from spark_tracking.mirror import sync as sync
    from spark_tracking.readers import read as read
    from spark_tracking.scoring import score_table as score_table
    from spark_tracking.scoring import score_udf as score_udf
    from spark_tracking.spark.local import local_spark as local_spark
    from spark_tracking.store.trash import delete_run as delete_run

__version__ = "0.1.0"

_HOMES = {
    "doctor": "spark_tracking.cluster.doctor",
    "executor_run": "spark_tracking.cluster.executors",
    "executor_tracking": "spark_tracking.cluster.executors",
    "use": "spark_tracking.cluster.use",
    "local_spark": "spark_tracking.spark.local",
    "read": "spark_tracking.readers",
    "score_table": "spark_tracking.scoring",
    "score_udf": "spark_tracking.scoring",
    "delete_run": "spark_tracking.store.trash",
    "sync": "spark_tracking.mirror",
}

_NEEDS = {"local_spark": ("pyspark", "delta"), "score_table": ("pandas",), "score_udf": ("pandas",)}
"""What a call needs beyond the core."""

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - the names in _HOMES


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'spark_tracking' has no attribute '{name}'. It has: {', '.join(__all__)}")
    if name in _NEEDS:
        from spark_tracking.extras import require

        require(f"spark_tracking.{name}", *_NEEDS[name])
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
