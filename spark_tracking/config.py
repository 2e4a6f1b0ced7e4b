"""Every environment variable that we read, with its reason and default. Nothing else in the package touches `os.environ`
for settings of ours; MLflow's own variables are MLflow's (`mlflow.environment_variables`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from spark_tracking.errors import InvalidSetting

T = TypeVar("T")


@dataclass(frozen=True)
class Setting(Generic[T]):
    """One environment variable.

    Example:
        >>> FLUSH_SECONDS.get()
        2.0
    """

    name: str
    default: T
    parse: Callable[[str], T]
    reason: str

    def get(self) -> T:
        """The value now; an empty variable counts as unset.

        Raises:
            InvalidSetting: the variable's text does not parse.
        """
        text = os.environ.get(self.name, "")
        if not text:
            return self.default
        try:
            return self.parse(text)
        except ValueError as error:
            raise InvalidSetting(
                f"The environment variable {self.name}='{text}' is not valid: {error}. It sets: {self.reason}."
            ) from None


def _positive(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise ValueError("expected a number above 0")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError("expected a whole number, 0 or more")
    return number


def _flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("expected true or false")


FLUSH_SECONDS = Setting(
    "SPARK_TRACKING_FLUSH_SECONDS", 2.0, _positive, "how often a writing process moves its journal into Delta, in seconds"
)
FLUSH_BYTES = Setting(
    "SPARK_TRACKING_FLUSH_BYTES", 16 * 1024 * 1024, _count, "journal size that triggers a flush ahead of time, in bytes"
)
DURABLE = Setting(
    "SPARK_TRACKING_FSYNC", True, _flag, "whether a call is synced to disk before it returns (false: survives kill -9, not power loss)"
)
RETENTION_DAYS = Setting(
    "SPARK_TRACKING_RETENTION_DAYS", 30.0, _positive, "how long deleted runs, experiments and models can be restored, in days"
)
EXPERIMENT = Setting(
    "SPARK_TRACKING_EXPERIMENT", "", str, "the experiment of processes that name none; may hold {user}, {job}, {notebook}, {cluster}"
)

ALL: tuple[Setting[object], ...] = tuple(value for value in list(globals().values()) if isinstance(value, Setting))
