"""Where a sync reads from: a reader, who it is, what it can count, and what its listings leave out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import blake2b
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from spark_tracking.errors import LakeReadOnly
from spark_tracking.kinds.lake_sql import one_of
from spark_tracking.lake import Lake
from spark_tracking.lake.system_tables import NAMES, SystemTables
from spark_tracking.masking import without_secrets
from spark_tracking.mirror import histories
from spark_tracking.mirror.fingerprint import DIGEST_BYTES
from spark_tracking.mirror.registers import Row
from spark_tracking.readers.base import Reader
from spark_tracking.readers.folder import FolderReader
from spark_tracking.readers.lake import LakeReader
from spark_tracking.readers.opening import DATABASES, open_reader
from spark_tracking.readers.pages import printable
from spark_tracking.readers.query import Query, Range
from spark_tracking.readers.rest_http import Http
from spark_tracking.readers.schemas import TABLES
from spark_tracking.readers.sql import Database
from spark_tracking.readers.system_tables import SystemTablesReader
from spark_tracking.uri import LakeUri, is_lake_uri, is_plain_id

REQUESTS_AT_ONCE = 4
_COUNT_SCHEMA = pa.schema([("run", pa.string()), ("points", pa.int64())])


class Source:
    """A tracking server that is read by a sync.

    Attributes:
        id: names the source in bookmarks and registers, the same for the same URI at all times, with nothing secret in it.
        label: a short name for people, which also tells two sources' things of one name apart.
        lake_root: where the lake lies, if it is one.
        at_once: how many requests may be under way.
        counts: whether it can tell how many points a run has.
    """

    def __init__(
        self, uri: str, name: str | None = None, requests_per_second: float | None = None, requests_at_once: int = REQUESTS_AT_ONCE
    ) -> None:
        self.uri = uri
        self.reader: Reader = open_reader(uri, requests_per_second=requests_per_second)
        self._kind = _kind(self.reader, uri)
        if self._kind in ("lake", "tables"):
            self.uri = str(LakeUri.parse(uri))  # also of a path
        known = _normalized(self.uri)
        self.id = blake2b((name or known).encode(), digest_size=8).hexdigest()
        self.label = name or _label(known)
        self.lake_root = LakeUri.parse(self.uri).root if self._kind == "lake" else None
        self.counts = self._kind in ("lake", "database", "tables")
        self._requests_per_second = requests_per_second
        self.at_once = requests_at_once

    @cached_property
    def http(self) -> Http:
        """What asks the server, where the source is one; not for two threads to make at once."""
        return Http(self.uri, self._requests_per_second)

    def rows(self, table: str, **options: Any) -> Iterator[pa.RecordBatch]:
        """The rows of a table, active and deleted ones, in batches."""
        query = Query(table, view_type="all", ordered=False, **options)
        for batch in self.reader.read(query):
            yield self._named(table, batch)

    def _named(self, table: str, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows whose ids are no more than that: an id becomes the name of a folder."""
        keys, fits, rule = _KEYS.get(table, ((), is_plain_id, ""))
        bad: dict[int, str] = {}
        for key in keys:
            bad |= {i: str(id) for i, id in enumerate(batch.column(key).to_pylist()) if not fits(id)}
        for id in bad.values():
            self.reader.refuse(table, printable(id), f"It is refused: expected {rule}.")
        return batch.take([i for i in range(batch.num_rows) if i not in bad]) if bad else batch

    def refused(self, *tables: str) -> int:
        """How many rows of some tables were left out."""
        return sum(table in tables for table, _ in self.reader.refused)

    def names(self, name: str) -> Iterator[str]:
        """What a thing of this source may be called elsewhere, where its own name is taken."""
        yield name
        yield f"{name} ({self.label})"
        yield from (f"{name} ({self.label} {i})" for i in count(2))

    def runs_between(self, experiment_ids: tuple[str, ...], filter: str, low: int | None, high: int | None) -> Iterator[Row]:
        """A server's runs that started in a span, which is asked for directly: milliseconds, the ends included."""
        query = Query("runs_latest", experiment_ids, filter=filter, view_type="all", ordered=False)
        for batch in self.reader.read(query, Range(low or 0, None if high is None else high + 1)):
            yield from batch.to_pylist()

    def state(self) -> bytes | None:
        """What is the same as long as nothing has changed; None where that cannot be told without looking at all."""
        if self._kind not in ("lake", "tables"):
            return None
        root = LakeUri.parse(self.uri).root
        try:
            if self._kind == "lake":
                Lake.open(self.uri).flush()
            names = ("events", "run_metrics_history") if self._kind == "lake" else NAMES
            versions = [str(DeltaTable(f"{root}/{name}").version()) for name in names]
        except (LakeReadOnly, DeltaError):
            return None
        return blake2b("/".join(versions).encode(), digest_size=DIGEST_BYTES).digest()

    def run_count(self, experiment_ids: tuple[str, ...]) -> int | None:
        """How many runs some experiments have; None where asking is listing."""
        if self._kind == "database":
            sql = f"SELECT count(*) FROM runs WHERE experiment_id IN ({', '.join(experiment_ids)})"
            return int(Database(self.uri).table(sql, pa.schema([("n", pa.int64())]))["n"][0].as_py())
        if self._kind == "lake":
            return Lake.open(self.uri).count("run", one_of("experiment_id", experiment_ids))
        return None

    def point_counts(self) -> dict[str, int]:
        """How many points each run has; empty where the source cannot count."""
        counts: dict[str, int] = {}
        for batch in self._counted():
            for run, points in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist()):
                counts[run] = counts.get(run, 0) + points
        return counts

    def _counted(self) -> Iterator[pa.RecordBatch]:
        if self._kind == "database":
            yield from Database(self.uri).stream("SELECT run_uuid, count(*) FROM metrics GROUP BY run_uuid", _COUNT_SCHEMA)
        elif self.counts:
            root = LakeUri.parse(self.uri).root
            for batch in (SystemTables(root) if self._kind == "tables" else Lake.open(self.uri)).scan("run_metrics_history", ["run_id"]):
                found = pc.value_counts(batch.column(0).cast(pa.string()))
                yield pa.RecordBatch.from_arrays([found.field(0), found.field(1)], schema=_COUNT_SCHEMA)

    def points(self, runs: Sequence[Row]) -> pa.Table:
        """All points of some runs, in the columns of `run_metrics_history`."""
        schema = TABLES["run_metrics_history"].schema
        if not runs:
            return schema.empty_table()
        if isinstance(self.reader, FolderReader):
            return pa.Table.from_batches(self.reader.points_of(run["run_id"] for run in runs), schema)
        if self._kind == "rest":
            return histories.read(self, runs)
        return self.all_points(runs)

    def all_points(self, runs: Sequence[Row]) -> pa.Table:
        """The same by the reader's own way, however many points there are."""
        schema = TABLES["run_metrics_history"].schema
        experiments = tuple({run["experiment_id"] for run in runs})
        ids = tuple(run["run_id"] for run in runs)
        if self._kind == "rest":
            among = ", ".join("'" + id.replace("'", "\\'") + "'" for id in ids)
            batches = self.rows("run_metrics_history", experiment_ids=experiments, filter=f"attributes.run_id IN ({among})")
        else:
            batches = self.rows("run_metrics_history", experiment_ids=experiments, run_ids=ids)
        return pa.Table.from_batches(batches, schema)

    def complete(self, runs: Iterable[Row], with_models: bool) -> None:
        """Put into rows of `runs_latest` what the listing did not tell: over REST the models that a run read and made."""
        if self._kind != "rest" or not with_models:
            return

        def ask(run: Row) -> None:
            told = self.http.get("runs/get", run_id=run["run_id"])["run"]
            run["model_inputs"] = [model["model_id"] for model in told.get("inputs", {}).get("model_inputs", ())]
            outputs = told.get("outputs", {}).get("model_outputs", ())
            run["model_outputs"] = [{"model_id": model["model_id"], "step": int(model.get("step", 0))} for model in outputs]

        with ThreadPoolExecutor(self.at_once) as pool:
            list(pool.map(ask, runs))

    def artifact_uri(self, uri: str | None) -> str | None:
        """An artifact URI as one can follow it from elsewhere: a path of the server's own proxy becomes its URL."""
        if self._kind == "rest" and uri and uri.startswith("mlflow-artifacts:/") and not uri.startswith("mlflow-artifacts://"):
            path = uri.removeprefix("mlflow-artifacts:/").lstrip("/")
            return f"{without_secrets(self.uri).rstrip('/')}/api/2.0/mlflow-artifacts/artifacts/{path}"
        return uri


def _kind(reader: Reader, uri: str) -> str:
    if isinstance(reader, SystemTablesReader):
        return "tables"
    if isinstance(reader, LakeReader):
        return "lake"
    if isinstance(reader, FolderReader):
        return "folder"
    return "database" if uri.partition(":")[0].partition("+")[0].lower() in DATABASES else "rest"


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


def _normalized(uri: str) -> str:
    """The URI without credentials, and with a local path made absolute."""
    uri = without_secrets(uri)
    if is_lake_uri(uri):
        return str(LakeUri.parse(uri))
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]*)", uri)
    if match:
        return f"sqlite:///{os.path.abspath(match.group(1))}"
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        return f"file://{os.path.abspath(parts.path)}"
    if not parts.hostname:
        return uri
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme.partition('+')[0]}://{parts.hostname}{port}{parts.path.rstrip('/')}"


def _label(uri: str) -> str:
    """The last word of a URI that says something."""
    parts = urlsplit(uri)
    words = [word for word in re.split(r"[/\\]", parts.path) if word] or [parts.netloc]
    last = words[-1].rsplit(".", 1)[0] if parts.scheme == "sqlite" else words[-1]
    return last if parts.scheme in ("sqlite", "delta", "file", "") or not parts.hostname else parts.hostname
