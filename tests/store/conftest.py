"""Fixtures of the store's tests: a store on a new lake, and MLflow's SQL store beside it as the oracle."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from spark_tracking.store.registry import LakeRegistryStore
from spark_tracking.store.tracking import LakeTrackingStore

_ID = re.compile(r"\b[0-9a-f]{32}\b")
_TIME = re.compile(r"\b1[6-9]\d{11}\b")
_UNORDERED = {"_metric_objs", "_latest_version"}
"""Fields whose lists SQL gives in any order."""


@dataclass
class Backend:
    """A tracking store and the registry on the same data."""

    tracking: Any
    registry: Any


@pytest.fixture
def store(lake_uri: str) -> LakeTrackingStore:
    """A tracking store on a new lake."""
    return LakeTrackingStore(lake_uri, "file:///artifacts")


@pytest.fixture
def registry(lake_uri: str) -> LakeRegistryStore:
    """The registry on the same lake."""
    return LakeRegistryStore(lake_uri, lake_uri)


@pytest.fixture
def lake(store: LakeTrackingStore, registry: LakeRegistryStore) -> Backend:
    """Both of ours."""
    return Backend(store, registry)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with MLflow's tables: making them takes seconds, copying them doesn't."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path = tmp_path_factory.mktemp("oracle") / "template.db"
    SqlAlchemyStore(f"sqlite:///{path}", "file:///artifacts")._dispose_engine()
    return path


@pytest.fixture
def oracle(sqlite_template: Path, tmp_path: Path) -> Backend:
    """MLflow's SQL stores on a new database."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as SqlRegistry
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path = tmp_path / "oracle.db"
    path.write_bytes(sqlite_template.read_bytes())
    return Backend(SqlAlchemyStore(f"sqlite:///{path}", "file:///artifacts"), SqlRegistry(f"sqlite:///{path}"))


class Recorder:
    """Calls a backend and notes each result or error in a form that two backends can be compared by.

    Ids become numbers in the order of their appearance, times become 'T', sets and dictionaries are sorted.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.seen: list[tuple[str, Any]] = []
        self._ids: dict[str, str] = {}
        self._numbers = itertools.count(1)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        store = self.backend.tracking if hasattr(self.backend.tracking, name) else self.backend.registry

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                result = getattr(store, name)(*args, **kwargs)
            except MlflowException as error:
                self.seen.append((name, f"{error.error_code}: {self.plain(error.message)}"))
                return None
            self.seen.append((name, self.plain(result)))
            return result

        return call

    def plain(self, value: Any) -> Any:
        """A value without ids and times."""
        if isinstance(value, str):
            return _TIME.sub("T", _ID.sub(self._number, value.split(" Error: (")[0]))
        if isinstance(value, Enum) or value is None or isinstance(value, bool):
            return value
        if isinstance(value, float) and math.isnan(value):
            return "NaN"
        if isinstance(value, int):
            return "T" if value > 1_600_000_000_000 else value
        if isinstance(value, dict):
            return {self.plain(k): self.plain(value[k]) for k in sorted(value)}
        if isinstance(value, (list, tuple)):
            token = getattr(value, "token", None)
            items = [self.plain(v) for v in value]
            return {"items": items, "more": True} if token else items
        if not hasattr(value, "__dict__"):
            return value
        fields = {key: self.plain(held) for key, held in sorted(vars(value).items())}
        return {type(value).__name__: {key: sorted(held, key=repr) if held and key in _UNORDERED else held for key, held in fields.items()}}

    def _number(self, match: re.Match[str]) -> str:
        return self._ids.setdefault(match[0], f"id-{next(self._numbers)}")


@pytest.fixture
def on_both(lake: Backend, oracle: Backend) -> Iterator[Callable[[Callable[[Recorder], None]], None]]:
    """Runs a script on the oracle and on the lake, and asserts that each call gave the same."""

    def run(script: Callable[[Recorder], None]) -> None:
        expected, ours = Recorder(oracle), Recorder(lake)
        script(expected)
        script(ours)
        assert [name for name, _ in ours.seen] == [name for name, _ in expected.seen]
        for number, (mine, theirs) in enumerate(zip(ours.seen, expected.seen)):
            assert mine == theirs, f"call {number}, {mine[0]}: the lake's answer is not the SQL store's"

    yield run
    oracle.tracking._dispose_engine()
    oracle.registry._dispose_engine()
