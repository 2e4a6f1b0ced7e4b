"""The helper process of a forked child, which answers what the child asks of a lake: `python -m spark_tracking.lake.helper <root>`."""

from __future__ import annotations

import pickle
import sys
from contextlib import suppress

from spark_tracking.errors import SparkTrackingError
from spark_tracking.lake.lake import Lake


def main(root: str) -> None:
    """Answer until the child ends."""
    lake, answers = Lake.open(root), sys.stdout.buffer
    with suppress(EOFError):
        while True:
            call, arguments, named = pickle.load(sys.stdin.buffer)  # noqa: S301 - a pipe between the two
            answer, problem = None, None
            try:
                answer = getattr(lake, call)(*arguments, **named)
            except SparkTrackingError as error:
                problem = str(error.message)
            pickle.dump((answer, problem), answers)
            answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
