"""What is the same of all things that a store keeps: the lake they are in, their making, tags, search and pages; MLflow's errors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Generic, TypeVar

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST
from mlflow.store.entities.paged_list import PagedList
from mlflow.utils import time as mlflow_time
from mlflow.utils.search_utils import SearchUtils

from spark_tracking.address import LakeUri
from spark_tracking.kinds import lake_sql
from spark_tracking.kinds.catalog import Kind
from spark_tracking.kinds.state import Stamp
from spark_tracking.lake import Entity, Event, Lake

T = TypeVar("T")
MAX_TIME = 253_402_300_799_000
"""The end of the year 9999 in ms: the last time that every reader of the tables can show."""


@dataclass
class Home:
    """The lake of the stores at one URI, opened on first use, so that building a store touches nothing.

    Attributes:
        artifact_root: where a lake that is made puts its first experiment's artifacts, whichever store makes it.
        born: when the first of the stores was built, in ms: a first experiment is as old as that, and older than what a first call makes.
    """

    uri: LakeUri
    artifact_root: str
    born: int

    @staticmethod
    @lru_cache(maxsize=64)
    def of(uri: LakeUri) -> Home:
        """The process's one at a URI."""
        return Home(uri, uri.artifact_root, now())

    @property
    def lake(self) -> Lake:
        """The process's lake; made where there is none yet."""
        return Lake.open(self.uri, create=True, artifact_root=self.artifact_root, born=self.born)


class Things(Generic[T]):
    """The things of one kind in a lake. What MLflow's store class wants of them are the public methods of a subclass.

    Attributes:
        kind: which kind.
        missing: what is said where there is none of an id.
    """

    kind: ClassVar[Kind]
    missing: ClassVar[str]

    def __init__(self, home: Home) -> None:
        self.home = home

    @property
    def lake(self) -> Lake:
        """The process's lake."""
        return self.home.lake

    def entity(self, state: Entity) -> T:
        """A thing as MLflow's class has it."""
        raise NotImplementedError

    def find(self, id: str, points: bool = True) -> Entity:
        """The thing of an id, deleted or not. Raises MlflowException: there is none (RESOURCE_DOES_NOT_EXIST)."""
        found = self.lake.get(self.kind.name, id, points)
        if found is None:
            raise not_found(self.missing.format(id))
        return found

    def active(self, id: str) -> Entity:
        """The thing of an id, not in the trash; its metrics may be old. Raises MlflowException: there is none, or it is in the trash."""
        found = self.find(id, points=False)
        if found.deleted:
            raise invalid(f"The {self.kind.name} {found.id} must be in the 'active' state. Current state is deleted.")
        return found

    def set(self, id: str, **values: str | int | None) -> None:
        """Set attributes; None removes one."""
        self.lake.write(self.attrs(id, **values))

    def set_tags(self, id: str, tags: Iterable[Any]) -> None:
        """Set tags."""
        self.lake.write(pairs(self.kind.name, id, "tag", tags))

    def remove(self, id: str, field: str, key: str) -> None:
        """Remove one of the tags or aliases; none is no error."""
        self.lake.write([Event(self.kind.name, id, field, key, None)])

    def attrs(self, id: str, **values: str | int | None) -> list[Event]:
        """Events that set attributes; None removes one."""
        return attrs(self.kind.name, id, **values)

    def made(self, id: str, values: Mapping[str, Any], tags: Iterable[Any], params: Iterable[Any] = ()) -> list[Event]:
        """The events of a creation."""
        name, known = self.kind.name, {key: value for key, value in values.items() if value is not None}
        return [*attrs(name, id, **known), *pairs(name, id, "param", params), *pairs(name, id, "tag", tags)]

    def folded(self, id: str, events: Iterable[Event]) -> Entity:
        """What the events of a creation make, without asking the lake for it."""
        entity = Entity(self.kind.name, id)
        for number, event in enumerate(events):
            if (event.kind, event.id) == (self.kind.name, id):
                entity.fold(Stamp(number, ""), event.field, event.key, event.value)
        return entity

    def page(
        self,
        where: str | None,
        order: Sequence[str],
        size: int | None,
        page_token: str | None,
        convert: Callable[[Sequence[Entity]], list[T]] | None = None,
    ) -> PagedList[T]:
        """A page of what satisfies a predicate; all of it without a `size`."""
        offset = offset_of(page_token)
        found = self.lake.search(self.kind.name, where, order, None if size is None else size + 1, offset)
        shown = found if size is None else found[:size]
        entities = convert(shown) if convert else [self.entity(state) for state in shown]
        return PagedList(entities, None if len(shown) == len(found) else SearchUtils.create_page_token(offset + len(shown)))


def ids_in(lake: Lake, kind: Kind, experiment_id: str) -> list[str]:
    """The ids of the runs or logged models of an experiment."""
    rows = lake.scan(kind.table, [kind.key], lake_sql.one_of("experiment_id", [experiment_id]))
    return [id for batch in rows for id in batch.column(0).to_pylist()]


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
    """Refuse what has no value (BAD_REQUEST), where `column` of MLflow's SQL store has no place for that."""
    for item in items:
        if item.value is None:
            raise MlflowException(f"NOT NULL constraint failed: {column}. '{item.key}' needs a text, maybe an empty one.", BAD_REQUEST)


def require_at_most(threshold: int, max_results: int) -> None:
    """Refuse a page size that the registry's SQL store refuses (INVALID_PARAMETER_VALUE)."""
    if max_results > threshold:
        raise invalid(f"Invalid value for request parameter max_results. It must be at most {threshold}, but got value {max_results}")


def offset_of(page_token: str | None) -> int:
    """Where a page begins. Raises MlflowException: the token is none that a page of ours ended with (INVALID_PARAMETER_VALUE)."""
    try:
        offset = SearchUtils.parse_start_offset_from_page_token(page_token)
    except MlflowException:
        raise
    except Exception:  # valid base64 of valid JSON that is something else
        offset = None
    return valid_offset(offset)


def valid_offset(offset: object) -> int:
    """An offset that a page token holds. Raises MlflowException: it is no count of rows (INVALID_PARAMETER_VALUE)."""
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
    """A time in ms that tables can hold. Raises MlflowException: it lies after the year 9999, as nanoseconds taken for milliseconds do."""
    if milliseconds is not None and abs(milliseconds) > MAX_TIME:
        raise invalid(f"Invalid value {milliseconds} for '{name}': expected milliseconds since the epoch, at most {MAX_TIME} (year 9999).")
    return None if milliseconds is None else int(milliseconds)
