"""Scoring: from a logged model to a table of predictions.

score_udf     a drop-in for `mlflow.pyfunc.spark_udf`
score_table   Delta table in, Delta table out: request (its arguments) -> job -> strategy (`by_files`, `by_spark`) -> commit
history       which model wrote what into a table

`worker` is what runs in Spark's Python workers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark_tracking.scoring.commits import history as history
    from spark_tracking.scoring.result import ScoreResult as ScoreResult
    from spark_tracking.scoring.table import score_table as score_table
    from spark_tracking.scoring.udf import score_udf as score_udf

# Imported on first use: workers import `scoring.worker` and need neither the driver's modules nor deltalake.
_HOMES = {"ScoreResult": "result", "history": "commits", "score_table": "table", "score_udf": "udf"}

__all__ = ["ScoreResult", "history", "score_table", "score_udf"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'spark_tracking.scoring' has no attribute '{name}'. It has: {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
