"""Questions to a session's workers, sent by value, since a worker may not have this package."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def ask(session: SparkSession, question: Callable[[], Any], *, tasks: int = 4, spread: float = 0.0) -> list[Any]:
    """What `question` answers in each of `tasks` tasks, carried as JSON.

    Args:
        question: made inside a function and importing what it needs in itself, so that cloudpickle sends it by value.
        spread: seconds that each task waits, so that the next one goes to another executor.
    """
    from pyspark.sql.functions import udf

    def answer(_: int) -> str:
        import json
        import time

        time.sleep(spread)
        return json.dumps(question())

    # Of all kinds of functions the plain one needs nothing of the workers: no pandas, no Arrow.
    rows = session.range(0, tasks, 1, tasks).select(udf(answer, "string", useArrow=False)("id")).collect()
    return [json.loads(row[0]) for row in rows]
