"""What to read, checked, in one frozen value that can be sent to a worker."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime, time, timezone
from itertools import pairwise
from typing import Any

from spark_tracking.errors import InvalidInput
from spark_tracking.readers.schemas import Table, table_of

VIEW_TYPES = ("active_only", "deleted_only", "all")
Key = str | int
Time = str | int | date | datetime
"""A time as users write it; a number, also as text, is milliseconds since 1970."""


@dataclass(frozen=True)
class Range:
    """A part of a table's key space: low <= key < high; None is an open end.

    What the key is (a run's id, its start in milliseconds) is the reader's business.
    """

    low: Key | None = None
    high: Key | None = None

    @staticmethod
    def between(bounds: list[Any]) -> list[Range]:
        """The ranges that `bounds` cut the whole key space into, first and last with open ends.

        Example:
            >>> Range.between([5])
            [Range(low=None, high=5), Range(low=5, high=None)]
        """
        ends = [None, *bounds, None]
        return [Range(low, high) for low, high in pairwise(ends)]


EVERYTHING = Range()


@dataclass(frozen=True)
class Query:
    """Which rows of which table, as `spark_tracking.read` takes it; times are milliseconds since 1970.

    Attributes:
        experiment_names: `Reader.resolve` turns them into ids.
        run_ids: only of these runs, where the reader is of a lake or database. For many, quicker than a filter.
        version, timestamp: the state of a lake that every read of this query sees.
        ordered: whether rows come in the table's order, which costs.
    """

    table: str
    experiment_ids: tuple[str, ...] | None = None
    experiment_names: tuple[str, ...] = ()
    filter: str | None = None
    view_type: str = "active_only"
    start_after: int | None = None
    start_before: int | None = None
    version: int | None = None
    timestamp: int | None = None
    ordered: bool = True
    run_ids: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        table_of(self.table)
        if self.view_type not in VIEW_TYPES:
            raise InvalidInput(f"view_type='{self.view_type}' is none of {', '.join(VIEW_TYPES)}.")
        if self.version is not None and self.timestamp is not None:
            raise InvalidInput("Both version and timestamp are given; give one of them.")
        for id in self.experiment_ids or ():
            if not id or not id.isascii() or any(character.isspace() or character in ",'\"" for character in id):
                raise InvalidInput(f"'{id}' is not an experiment id. Ids are numbers such as 1; for names there is experiment_names.")

    @property
    def spec(self) -> Table:
        """The table."""
        return table_of(self.table)

    @property
    def lifecycle_stages(self) -> tuple[str, ...]:
        """The stages that `view_type` shows."""
        return {"active_only": ("active",), "deleted_only": ("deleted",)}.get(self.view_type, ("active", "deleted"))

    def of(self, table: str) -> Query:
        """The same question to another table."""
        return replace(self, table=table)


def moment(timestamp: Time | None, as_of: Time | None) -> int | None:
    """The time whose state is to be read, by either of its names, in milliseconds since 1970.

    Raises:
        InvalidInput: it is no time, or both are given.
    """
    if timestamp is not None and as_of is not None:
        raise InvalidInput("timestamp and as_of are the same option; give one of them.")
    return milliseconds(timestamp, "timestamp") if as_of is None else milliseconds(as_of, "as_of")


def milliseconds(value: Time | float | None, name: str) -> int | None:
    """A time as users write it, in milliseconds since 1970; ISO 8601 text without a zone is UTC.

    Raises:
        InvalidInput: it is none; the message tells `name`, the option.

    Example:
        >>> milliseconds("2026-01-31T12:00:00Z", "start_after")
        1769860800000
    """
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value)
    if isinstance(value, str):
        text = value.strip()
        if text.lstrip("-").isdigit():
            return int(text)
        try:
            value = datetime.fromisoformat(text.removesuffix("Z") + ("+00:00" if text.endswith("Z") else ""))
        except ValueError:
            raise InvalidInput(
                f"{name}='{text}' is not a time. Expected ISO 8601 (2026-01-31T12:00:00Z) or milliseconds since 1970."
            ) from None
    elif not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if value.tzinfo is None:
        value = value.replace(tzinfo=timezone.utc)
    return round(value.timestamp() * 1000)
