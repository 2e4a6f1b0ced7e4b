"""Pages of MLflow's REST API as columns (format: https://mlflow.org/docs/latest/rest-api.html), and what of them is refused.

One malformed row costs that row, which is told; a listing that cannot come to its end costs the listing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from spark_tracking import config
from spark_tracking.errors import Unavailable
from spark_tracking.kinds.shapes import time_column
from spark_tracking.readers.nested_columns import batch_of
from spark_tracking.readers.schemas import TABLES

TOKEN_REPEATS = 3
Json = Mapping[str, Any]
Convert = Callable[[Sequence[Any]], pa.RecordBatch]
Refuse = Callable[[str, str], None]
"""Takes the id of a row and why it is refused."""


def things(table: str, page: Sequence[Json], whole: bool = False) -> pa.RecordBatch:
    """Things of a page, of a listing or each as a `whole`, as rows of a table; raises what fits where one is malformed."""
    spec = TABLES[table]
    parts: dict[str, list[Json]] = {"": list(page)}
    columns = {}
    for name in spec.schema.names:
        column = spec.kind.by_name[name]
        if column.rest is None or not (column.listed or whole):
            continue
        part, _, key = column.rest.rpartition(".")
        if part not in parts:
            parts[part] = [thing.get(part) or {} for thing in page]
        columns[name] = column.shape.from_page([told.get(key) for told in parts[part]])
        if column.shape.needed and columns[name].null_count:
            raise ValueError(f"its {key} is missing")
    return batch_of(spec.schema, columns)


def points(run: Json, name: str, page: Sequence[Json]) -> pa.RecordBatch:
    """Points of one metric of a run as rows of `run_metrics_history`."""
    columns = {
        "run_id": pa.array([run["run_id"]] * len(page), pa.string()),
        "experiment_id": pa.array([run["experiment_id"]] * len(page), pa.string()),
        "metric_name": pa.array([name] * len(page), pa.string()),
        "metric_time": time_column(point.get("timestamp") for point in page),
        "metric_step": pa.array([int(point.get("step", 0)) for point in page], pa.int64()),
        "metric_value": pa.array([float(point["value"]) for point in page], pa.float64()),
    }
    return batch_of(TABLES["run_metrics_history"].schema, columns)


class Listing:
    """How far the pages of one listing have come.

    Args:
        what: the listing and its server, for messages.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._tokens: Counter[str] = Counter()
        self._pages = 0

    def turn(self) -> None:
        """Count a page.

        Raises:
            Unavailable: there are more than any honest listing has.
        """
        self._pages += 1
        if self._pages >= config.MAX_PAGES.get():
            raise Unavailable(
                f"{self._what} does not end after {self._pages:,} pages. Is the server broken? If it holds so much, "
                f"set {config.MAX_PAGES.name} to a larger number."
            )

    def token(self, answer: Json) -> str | None:
        """The token of the next page; None where there is none.

        Raises:
            Unavailable: it is no token, comes again and again, or there are too many.
        """
        token = answer.get("next_page_token")
        if token is None or token == "":
            return None
        self.turn()
        if not isinstance(token, str):
            raise Unavailable(f"{self._what} gives {str(token)[:40]!r} as a page token. Expected text; is it an MLflow server?")
        self._tokens[token] += 1
        if self._tokens[token] > TOKEN_REPEATS:
            raise Unavailable(f"{self._what} goes in a circle: the page token '{token[:40]}' came {self._tokens[token]} times.")
        return token


def rows_of(answer: Json, key: str, what: str) -> list[Any]:
    """The rows of a page.

    Raises:
        Unavailable: there is something else in their place.
    """
    rows = answer.get(key)
    if rows is None:
        return []
    if not isinstance(rows, list):
        raise Unavailable(f"{what} gives {type(rows).__name__} for '{key}' where a list was expected. Is it an MLflow server?")
    return rows


def sound(convert: Convert, rows: Sequence[Any], refuse: Refuse) -> tuple[pa.RecordBatch, Sequence[Any]]:
    """The rows that can be converted, as columns and as they are; the others are refused."""
    try:
        return convert(rows), rows
    except Exception:
        good = [row for row in rows if _is_sound(convert, row, refuse)]
        return convert(good), good


def _is_sound(convert: Convert, row: Any, refuse: Refuse) -> bool:
    try:
        convert([row])
    except Exception as error:
        refuse(shown_id(row), f"The row is malformed and left out: {reason(error)}.")
        return False
    return True


def shown_id(row: Any) -> str:
    """What names a row, as far as it says, in text that can be printed."""
    told = row if isinstance(row, Mapping) else {}
    info = told.get("info")
    for of in (info if isinstance(info, Mapping) else {}, told):
        for name in ("run_id", "model_id", "experiment_id", "name", "key"):
            if of.get(name):
                version = f"/{of['version']}" if of.get("version") and name == "name" else ""
                return printable(f"{of[name]}{version}")
    return printable(str(row))


def printable(text: str) -> str:
    """`text`, not too long, with what a terminal or a file cannot take as escapes."""
    return text[:100].encode("unicode_escape").decode() if not text.isprintable() or len(text) > 100 else text


def reason(error: Exception) -> str:
    """Why, in a few words."""
    said = str(error).strip().splitlines() or [""]
    known = {"KeyError": "it lacks ", "AttributeError": "a value of another kind than expected, ", "TypeError": ""}
    return printable(f"{known.get(type(error).__name__, '')}{said[0] or type(error).__name__}").rstrip(".")
