"""Questions to a session's workers, sent by value, since a worker may not have this package."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import spark_tracking

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_registering = threading.Lock()


def ask(session: SparkSession, question: Callable[[], Any], *, tasks: int = 4, spread: float = 0.0) -> list[Any]:
    """What `question` answers in each of `tasks` tasks, carried as JSON.

    Args:
        question: a function, which is sent with all functions of this package that it calls; those need nothing but Python's own modules.
        spread: seconds that each task waits, so that the next one goes to another executor.
    """
    from pyspark import cloudpickle
    from pyspark.sql.functions import udf

    with _registering:
        cloudpickle.register_pickle_by_value(spark_tracking)
        try:
            sent = cloudpickle.dumps(question)
        finally:
            cloudpickle.unregister_pickle_by_value(spark_tracking)

    def answer(_: int) -> str:  # itself sent by value, as any function in a function
        import json
        import pickle
        import time

        time.sleep(spread)
        return json.dumps(pickle.loads(sent)())  # noqa: S301 - the question

    # Of all kinds of functions the plain one needs nothing of the workers: no pandas, no Arrow.
    rows = session.range(0, tasks, 1, tasks).select(udf(answer, "string", useArrow=False)("id")).collect()
    return [json.loads(row[0]) for row in rows]
