"""What MLflow has beyond tracking and registry: reads are quiet and empty, writes say that a lake doesn't keep such things.

Each method of MLflow's abstract store that this package neither overrides nor lists as inherited gets an answer by its
name, so that a newer MLflow's methods are answered, too: what lists or searches finds nothing, what gets one thing does
not find it, everything else is refused as not implemented (501, which clients don't retry).
"""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import NOT_IMPLEMENTED
from mlflow.store.entities.paged_list import PagedList

from spark_tracking.store.things import Things, not_found

try:
    from mlflow.exceptions import MlflowNotImplementedException
except ImportError:  # MLflow 3.0, which Databricks Runtime 17.3 LTS brings

    class MlflowNotImplementedException(MlflowException):  # type: ignore[no-redef]
        """As in later versions of MLflow."""

        def __init__(self, message: str = "") -> None:
            super().__init__(message, error_code=NOT_IMPLEMENTED)


Method = Callable[..., Any]


class NotKept(MlflowNotImplementedException, NotImplementedError):
    """What a lake doesn't keep. Of both kinds: MLflow's server answers 501 to the first, its trace exporter gives up on the second."""

    def __init__(self, message: str) -> None:
        super().__init__(message)  # type: ignore[no-untyped-call]


_SQL_SERVER = "an MLflow server with an SQL backend"
_FEATURES = (  # the first that matches a method's name
    ("webhook", "Webhooks", "poll the tables of the lake, or use"),
    ("scor", "Registered scorers", "keep scorers in code and log their results as metrics, or use"),
    ("mcp", "The MCP server registry", "use"),
    ("label_schema|review_queue", "Review queues and label schemas", "use"),
    ("issue", "Issues", "use"),
    ("gateway|endpoint|secret|budget|guardrail", "The AI gateway", "use"),
    ("dataset", "Evaluation datasets", "log datasets as inputs of runs (mlflow.log_input), or use"),
    ("trace|span|assessment|session", "Traces and assessments", "send traces (mlflow.tracing.set_destination) to"),
)
_READS = ("get_", "list_", "search_", "batch_get_", "find_", "query_", "_load_", "sum_", "calculate_")
_MANY = re.compile(r"(?<!alia)(?<!detail)s$|_for_trace$")


def answer(name: str) -> Method:
    """A method for MLflow's abstract method `name`, which a lake has no data for."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _reply(name, [*args, *kwargs.values()])

    method.__name__ = name
    method.__doc__ = f"Of MLflow's interface; a lake has no data for it (see `{__name__}`)."
    return method


def _reply(name: str, arguments: list[Any]) -> Any:
    if name.startswith("get_or_create") or not name.startswith(_READS):
        raise not_kept(name)
    if name in ("search_traces", "_load_dataset_records"):
        return [], None
    if name.startswith("sum_"):
        return 0.0
    if name == "calculate_trace_filter_correlation":
        return _no_correlation()
    if name.startswith("get_") and not _MANY.search(name):
        what = name.removeprefix("get_").removesuffix("_info").replace("_", " ").capitalize()
        raise not_found(f"{what} {', '.join(map(repr, arguments))} not found: a lake keeps none.")
    return PagedList([], None)


def fill(store: type, base: type, parts: Sequence[type[Things[Any]]], inherited: frozenset[str], further: tuple[str, ...] = ()) -> None:
    """Give `store` the methods of its parts, and an answer for each other method of `base` that is not `inherited`.

    Args:
        parts: the keys of `store.parts`; theirs is what is public in the class itself, or MLflow's.
        further: methods that MLflow's server calls though `base` has none.
    """
    for part in parts:
        for name, method in vars(part).items():
            if callable(method) and (name in _CALLED or not (name.startswith("_") or hasattr(Things, name))):
                setattr(store, name, _handed_to(part, method))
    for name in (*dir(base), *further):
        plain = not name.startswith("__") and callable(getattr(base, name, fill))
        if plain and name not in vars(store) and name not in inherited:
            method = answer(name)
            method.__qualname__ = f"{store.__qualname__}.{name}"
            setattr(store, name, method)
    abc.update_abstractmethods(store)


_CALLED = frozenset(
    {
        *("_search_runs", "_search_datasets", "_await_model_version_creation"),
        *("_get_deleted_runs", "_get_deleted_logged_models"),  # by `mlflow gc`
        *("_hard_delete_run", "_hard_delete_experiment", "_hard_delete_logged_model"),
    }
)
"""What MLflow calls by a private name."""


def _handed_to(part: type[Things[Any]], method: Method) -> Method:
    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self.parts[part], *args, **kwargs)

    return call


def not_kept(name: str) -> MlflowException:
    """The refusal of MLflow's method `name`: which feature a lake lacks, and what to use instead (501)."""
    matching = ((feature, advice) for pattern, feature, advice in _FEATURES if re.search(pattern, name))
    feature, instead = next(matching, (f"'{name}'", "use"))
    are = "are" if feature.endswith("s") else "is"
    return NotKept(f"{feature} {are} not kept in a lake: '{name}' does nothing here. Instead, {instead} {_SQL_SERVER}.")


def _no_correlation() -> Any:
    try:
        from mlflow.tracing.analysis import TraceFilterCorrelationResult
    except ImportError as error:
        raise MlflowException(f"This MLflow has no trace correlations: {error}") from error
    return TraceFilterCorrelationResult(npmi=float("nan"), filter1_count=0, filter2_count=0, joint_count=0, total_count=0)
