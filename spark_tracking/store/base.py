"""What the parts of both stores share: the lake they stand on, and small pieces of MLflow's vocabulary."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST
from mlflow.store.entities.paged_list import PagedList
from mlflow.utils import time as mlflow_time
from mlflow.utils.search_utils import SearchUtils

from spark_tracking.kinds.state import Stamp
from spark_tracking.lake import Entity, Event, Lake
from spark_tracking.uri import LakeUri

T = TypeVar("T")
MAX_TIME = 253_402_300_799_000
"""The end of the year 9999 in ms: the last time that every reader of the tables can show."""


class LakeBacked:
    """A store on a lake. The lake is opened on first use, so that building a store touches nothing.

    Attributes:
        lake_uri: where the lake lies.
        artifact_root: where experiments' artifacts go by default.
        born: when the store was built, in ms: a lake's first experiment is as old as that, and older than what a first call makes.
    """

    lake_uri: LakeUri
    artifact_root: str
    born: int
    _said_roots: ClassVar[dict[str, str]] = {}
    """Lake to the artifact root that its tracking store was given: it holds also where the registry makes the lake."""

    @property
    def lake(self) -> Lake:
        """The process's lake; made where there is none yet."""
        root = self._said_roots.get(self.lake_uri.root, self.artifact_root)
        return Lake.open(self.lake_uri, create=True, artifact_root=root, born=self.born)


def now() -> int:
    """Milliseconds since the epoch, by MLflow's clock (looked up through its module, so that a test can turn it)."""
    return int(mlflow_time.get_current_time_millis())


def new_id() -> str:
    """32 hex characters whose order follows time (RFC 9562, version 7): min/max statistics find a run by its id."""
    random = int.from_bytes(os.urandom(10), "big")
    low = (2 << 62) | (random & ((1 << 62) - 1))
    return f"{time.time_ns() // 1_000_000 << 80 | 7 << 76 | (random >> 68) << 64 | low:032x}"


def attrs(kind: str, id: str, **values: str | int | None) -> list[Event]:
    """Events that set attributes; None removes one."""
    return [Event(kind, id, "attr", key, None if value is None else str(value)) for key, value in values.items()]


def pairs(kind: str, id: str, field: str, items: Iterable[Any]) -> list[Event]:
    """Events for MLflow's tags or params, anything with `key` and `value`. A tag without a value has an empty one."""
    return [Event(kind, id, field, item.key, "" if item.value is None else str(item.value)) for item in items]


def require_values(column: str, items: Iterable[Any]) -> None:
    """Refuse what has no value, where MLflow's SQL store has no place for that.

    Args:
        column: the column of the SQL store, for its message.

    Raises:
        MlflowException: an item's value is None (BAD_REQUEST).
    """
    for item in items:
        if item.value is None:
            raise MlflowException(f"NOT NULL constraint failed: {column}. '{item.key}' needs a text, maybe an empty one.", BAD_REQUEST)


def folded(kind: str, id: str, events: Iterable[Event]) -> Entity:
    """What the events of a creation make, without asking the lake for it."""
    entity = Entity(kind, id)
    for number, event in enumerate(events):
        if (event.kind, event.id) == (kind, id):
            entity.fold(Stamp(number, ""), event.field, event.key, event.value)
    return entity


def page(found: list[Any], offset: int, size: int, convert: Callable[[Any], T]) -> PagedList[T]:
    """A page of what was searched with `limit=size + 1`, and the token of the next one."""
    token = SearchUtils.create_page_token(offset + size) if len(found) > size else None
    return PagedList([convert(one) for one in found[:size]], token)


def offset_of(page_token: str | None) -> int:
    """Where a page begins.

    Raises:
        MlflowException: the token is none that a page of ours ended with (INVALID_PARAMETER_VALUE).
    """
    try:
        offset = SearchUtils.parse_start_offset_from_page_token(page_token)
    except MlflowException:
        raise
    except Exception:  # valid base64 of valid JSON that is something else
        offset = None
    return valid_offset(offset)


def valid_offset(offset: object) -> int:
    """An offset that a page token holds.

    Raises:
        MlflowException: it is no count of rows (INVALID_PARAMETER_VALUE).
    """
    if not isinstance(offset, int) or isinstance(offset, bool) or not 0 <= offset < 1 << 63:
        raise invalid(f"Invalid page token: its offset is {offset!r:.40}. Expected a token that the last page came with.")
    return offset


def invalid(message: str) -> MlflowException:
    """A value that cannot be right, as MLflow's SQL store says it."""
    return MlflowException(message, INVALID_PARAMETER_VALUE)


def not_found(message: str) -> MlflowException:
    """Something that is not there, as MLflow's SQL store says it."""
    return MlflowException(message, RESOURCE_DOES_NOT_EXIST)


def check_time(name: str, milliseconds: float | None) -> int | None:
    """A time in ms that tables can hold.

    Raises:
        MlflowException: it lies after the year 9999, as nanoseconds taken for milliseconds do.
    """
    if milliseconds is not None and abs(milliseconds) > MAX_TIME:
        raise invalid(f"Invalid value {milliseconds} for '{name}': expected milliseconds since the epoch, at most {MAX_TIME} (year 9999).")
    return None if milliseconds is None else int(milliseconds)


def drop_none(values: Mapping[str, T | None]) -> dict[str, T]:
    """The items that have a value."""
    return {key: value for key, value in values.items() if value is not None}
