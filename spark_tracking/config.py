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
N = TypeVar("N", int, float)


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
        """The value now, in the process's environment or another; an empty variable counts as unset.

        Raises:
            InvalidSetting: the variable's text does not parse.
        """
        text = (os.environ if environ is None else environ).get(self.name, "").strip()
        try:
            return self.parse(text) if text else self.default
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


def _number(kind: Callable[[str], N], least: N, expected: str) -> Callable[[str], N]:
    def parse(text: str) -> N:
        number = kind(text)
        if not number >= least:  # nor is NaN
            raise ValueError(f"expected {expected}")
        return number

    return parse


def _flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("expected true or false")


_positive = _number(float, 5e-324, "a number above 0")
_count = _number(int, 0, "a whole number, 0 or more")
_above_zero = _number(int, 1, "a whole number, 1 or more")


def _text(name: str, reason: str) -> Setting[str]:
    return Setting(f"SPARK_TRACKING_{name}", "", str, reason)


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
EXPERIMENT = _text("EXPERIMENT", "the experiment of processes that name none; may hold {user}, {job}, {notebook}, {cluster}")
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

# What a cluster start reads (`spark_tracking.cluster.settings`), beside EXPERIMENT.
URI = _text("URI", "the one server that this cluster tracks to")
REGISTRY_URI = _text("REGISTRY_URI", "the model registry, where it is not the tracking server")
AZURE_SUBSCRIPTION = _text("AZURE_SUBSCRIPTION", "the subscription id of an Azure ML workspace")
AZURE_RESOURCE_GROUP = _text("AZURE_RESOURCE_GROUP", "the resource group of an Azure ML workspace")
AZURE_WORKSPACE = _text("AZURE_WORKSPACE", "the name of an Azure ML workspace")
AZURE_REGION = _text("AZURE_REGION", "the region of an Azure ML workspace; found by one call where it is missing")
AZURE_CONFIG = _text("AZURE_CONFIG", "the path of an Azure ML workspace's config.json, instead of the three before")
PACKAGE = _text("PACKAGE", "what the init script installs: a requirement, or a wheel's path, with extras")
PYTHON = _text("PYTHON", "the Python that the init script installs into, where it is not the platform's own")
STRICT = Setting(
    "SPARK_TRACKING_STRICT", False, _flag, "whether wrong settings fail the cluster's start instead of leaving tracking as it was"
)
INIT_ROOT = _text("INIT_ROOT", "a folder that the init script takes for / (for a trial run)")
# What the start leaves behind for the processes of the cluster.
CONFIGURED = _text("CONFIGURED", "written by the init script: which state of the settings this process was started with")
ENV_FILE = _text("ENV_FILE", "written by the init script: the file that holds the settings")
PROBLEM = _text("PROBLEM", "written by the init script: why tracking was left as it was")

ALL: tuple[Setting[object], ...] = tuple(value for value in list(globals().values()) if isinstance(value, Setting))
