"""Where a sync reads from: a reader, who it is, and rows whose ids are no more than ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from spark_tracking.address import Address, is_plain_id
from spark_tracking.readers.opening import open_reader
from spark_tracking.readers.pages import printable
from spark_tracking.readers.query import Query
from spark_tracking.readers.reader import Reader


class Source:
    """A tracking server that is read by a sync.

    Attributes:
        id: names the source in bookmarks and registers, the same for the same URI at all times, with nothing secret in it.
        label: a short name for people, which also tells two sources' things of one name apart.
    """

    def __init__(self, uri: str, name: str | None, requests_per_second: float | None, requests_at_once: int) -> None:
        self.reader: Reader = open_reader(uri, requests_per_second=requests_per_second, requests_at_once=requests_at_once)
        known = Address.of(self.reader.uri).identity
        self.id = blake2b((name or known).encode(), digest_size=8).hexdigest()
        self.label = name or _label(known)

    def rows(self, table: str, **options: Any) -> Iterator[pa.RecordBatch]:
        """The rows of a table, active and deleted ones, in batches; without those whose ids could not be the name of a folder."""
        keys, fits, rule = _KEYS[table]
        for batch in self.reader.read(Query(table, view_type="all", ordered=False, **options)):
            bad: dict[int, str] = {}
            for key in keys:
                bad |= {i: str(id) for i, id in enumerate(batch.column(key).to_pylist()) if not fits(id)}
            for id in bad.values():
                self.reader.refuse(table, printable(id), f"It is refused: expected {rule}.")
            yield batch.take([i for i in range(batch.num_rows) if i not in bad]) if bad else batch

    def refused(self, *tables: str) -> int:
        """How many rows of some tables were left out."""
        return sum(table in tables for table, _ in self.reader.refused)

    def names(self, name: str) -> Iterator[str]:
        """What a thing of this source may be called elsewhere, where its own name is taken."""
        yield name
        yield f"{name} ({self.label})"
        yield from (f"{name} ({self.label} {i})" for i in count(2))


def _is_name(name: Any) -> bool:
    """Whether a registered model may be called so, as MLflow rules it."""
    return bool(name) and not any(c in "/:" or ord(c) < 32 for c in str(name))


_ID = "an id of 1 to 250 printable characters without '/', '\\\\', '%' and '..'"
_NAME = "a name of printable characters without '/' and ':'"
_KEYS: dict[str, tuple[tuple[str, ...], Callable[[Any], bool], str]] = {
    "experiments_latest": (("experiment_id",), is_plain_id, _ID),
    "runs_latest": (("run_id", "experiment_id"), is_plain_id, _ID),
    "logged_models_latest": (("model_id", "experiment_id"), is_plain_id, _ID),
    "registered_models_latest": (("name",), _is_name, _NAME),
    "model_versions_latest": (("name",), _is_name, _NAME),
}


def _label(uri: str) -> str:
    """The last word of a URI that says something."""
    parts = urlsplit(uri)
    words = [word for word in re.split(r"[/\\]", parts.path) if word] or [parts.netloc]
    last = words[-1].rsplit(".", 1)[0] if parts.scheme == "sqlite" else words[-1]
    return last if parts.scheme in ("sqlite", "delta", "file", "") or not parts.hostname else parts.hostname
