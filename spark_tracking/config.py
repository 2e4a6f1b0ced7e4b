"""Every environment variable that we read, with its reason and default. Nothing else in the package touches `os.environ`
for settings of ours; MLflow's own variables are MLflow's (`mlflow.environment_variables`)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

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

    def get(self, environ: Mapping[str, str] | None = None) -> T:
        """The value now; an empty variable counts as unset.

        Args:
            environ: where to look instead of the process's environment.

        Raises:
            InvalidSetting: the variable's text does not parse.
        """
        text = (os.environ if environ is None else environ).get(self.name, "").strip()
        if not text:
            return self.default
        try:
            return self.parse(text)
        except ValueError as error:
            from spark_tracking.errors import InvalidSetting  # only here: it imports MLflow, which takes seconds

            raise InvalidSetting(f"The environment variable {self.name}='{text}' is not valid: {error}. It sets: {self.reason}.") from None


_lock = threading.Lock()
_blocks = 0
_before: dict[str, str | None] = {}


@contextmanager
def temporary_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables while any block of this process is open (there may be several, in threads), then put back what was."""
    global _blocks
    with _lock:
        for name in variables.keys() - _before.keys():
            _before[name] = os.environ.get(name)
        os.environ.update(variables)
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks:
                for name in [name for name, text in _before.items() if text is None]:
                    os.environ.pop(name, None)
                os.environ.update({name: text for name, text in _before.items() if text is not None})
                _before.clear()


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


def _above_zero(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("expected a whole number, 1 or more")
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
FLUSH_BYTES = Setting("SPARK_TRACKING_FLUSH_BYTES", 16 * 1024 * 1024, _count, "journal size that triggers a flush ahead of time, in bytes")
DURABLE = Setting(
    "SPARK_TRACKING_FSYNC", True, _flag, "whether a call is synced to disk before it returns (false: survives kill -9, not power loss)"
)
RETENTION_DAYS = Setting(
    "SPARK_TRACKING_RETENTION_DAYS", 30.0, _positive, "how long deleted runs, experiments and models can be restored, in days"
)
EXPERIMENT = Setting(
    "SPARK_TRACKING_EXPERIMENT", "", str, "the experiment of processes that name none; may hold {user}, {job}, {notebook}, {cluster}"
)
TAGS = Setting(
    "SPARK_TRACKING_TAGS",
    None,
    _flag,
    "whether runs get the tags spark_tracking.*; default: where a cluster's start or `use` set up",
)

# What a reader takes from servers and folders of others.
MAX_PAGE_BYTES = Setting(
    "SPARK_TRACKING_MAX_PAGE_BYTES", 128 << 20, _above_zero, "how large an answer of a tracking server may be, unpacked, in bytes"
)
MAX_PAGES = Setting("SPARK_TRACKING_MAX_PAGES", 10_000, _above_zero, "after how many pages a listing counts as endless")
FOREIGN_FILES = Setting(
    "SPARK_TRACKING_FOREIGN_FILES", False, _flag, "whether Delta tables of others may name files outside their folder, as shallow clones do"
)

# What a cluster start reads (`spark_tracking.destination`), beside EXPERIMENT.
URI = Setting("SPARK_TRACKING_URI", "", str, "the one server that this cluster tracks to")
REGISTRY_URI = Setting("SPARK_TRACKING_REGISTRY_URI", "", str, "the model registry, where it is not the tracking server")
AZURE_SUBSCRIPTION = Setting("SPARK_TRACKING_AZURE_SUBSCRIPTION", "", str, "the subscription id of an Azure ML workspace")
AZURE_RESOURCE_GROUP = Setting("SPARK_TRACKING_AZURE_RESOURCE_GROUP", "", str, "the resource group of an Azure ML workspace")
AZURE_WORKSPACE = Setting("SPARK_TRACKING_AZURE_WORKSPACE", "", str, "the name of an Azure ML workspace")
AZURE_REGION = Setting("SPARK_TRACKING_AZURE_REGION", "", str, "the region of an Azure ML workspace; found by one call where it is missing")
AZURE_CONFIG = Setting(
    "SPARK_TRACKING_AZURE_CONFIG", "", str, "the path of an Azure ML workspace's config.json, instead of the three before"
)
PACKAGE = Setting("SPARK_TRACKING_PACKAGE", "", str, "what the init script installs: a requirement, or a wheel's path, with extras")
PYTHON = Setting("SPARK_TRACKING_PYTHON", "", str, "the Python that the init script installs into, where it is not the platform's own")
STRICT = Setting(
    "SPARK_TRACKING_STRICT", False, _flag, "whether wrong settings fail the cluster's start instead of leaving tracking as it was"
)
INIT_ROOT = Setting("SPARK_TRACKING_INIT_ROOT", "", str, "a folder that the init script takes for / (for a trial run)")
# What the start leaves behind for the processes of the cluster.
CONFIGURED = Setting(
    "SPARK_TRACKING_CONFIGURED", "", str, "written by the init script: which state of the settings this process was started with"
)
ENV_FILE = Setting("SPARK_TRACKING_ENV_FILE", "", str, "written by the init script: the file that holds the settings")
PROBLEM = Setting("SPARK_TRACKING_PROBLEM", "", str, "written by the init script: why tracking was left as it was")

ALL: tuple[Setting[object], ...] = tuple(value for value in list(globals().values()) if isinstance(value, Setting))
