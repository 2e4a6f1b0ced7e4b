"""The one interface of the readers, and the tables that are made from others."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.errors import InvalidInput, NotFound
from spark_tracking.kinds.filters import parse_located
from spark_tracking.readers.query import EVERYTHING, Query, Range
from spark_tracking.readers.schemas import DATASETS

_log = logging.getLogger(__name__)
DERIVED = {"datasets": "runs_latest", "artifacts": "runs_latest"}
BATCH_ROWS = 10_000
Row = dict[str, Any]
"""A row of one of the tables, as `to_pylist` gives it."""


class Reader(ABC):
    """One tracking server, read in bulk.

    A reader is made where it is used and never sent anywhere: it may hold connections. Its methods can be called from one
    thread at a time.

    Attributes:
        noun: the kind of server in words.
        counts_points: whether it can tell how many points each run has.
        uri: of the server; may hold a password.
        lake_root: where the lake lies, if it is one.
    """

    uri: str
    noun: ClassVar[str] = ""
    counts_points: ClassVar[bool] = False
    lake_root: str | None = None

    @cached_property
    def refused(self) -> dict[tuple[str, str], str]:
        """Rows that were left out as they are malformed: the reason by table and id."""
        return {}

    def refuse(self, table: str, id: str, reason: str) -> None:
        """Leave a row out, and tell so once."""
        if (table, id) not in self.refused:
            self.refused[table, id] = reason
            _log.warning("%s: %s of %s. %s", self.name, id, table, reason)

    def resolve(self, query: Query) -> Query:
        """`query` with names turned into ids, after checking all that can be checked before reading.

        Raises:
            NotFound: an experiment does not exist.
            InvalidInput: the filter does not parse; the message holds the place.
            PermissionRefused, Unavailable: the server says no, or nothing.
        """
        self.check_filter(query)
        if query.experiment_ids is None and not query.experiment_names:
            self.ping()
            return query
        known = self.experiments(query)
        ids = list(query.experiment_ids or ())
        missing = [f"id {id}" for id in ids if id not in known]
        by_name = {name: id for id, name in known.items()}
        missing += [f"name '{name}'" for name in query.experiment_names if name not in by_name]
        if missing:
            shown = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
            raise NotFound(
                f"There is no experiment with {shown} on {self.name}. "
                "spark_tracking.read('experiments_latest') lists those there are; is it the right tracking server?"
            )
        ids += [by_name[name] for name in query.experiment_names]
        return replace(query, experiment_ids=tuple(dict.fromkeys(ids)), experiment_names=())

    def read(self, query: Query, part: Range = EVERYTHING) -> Iterator[pa.RecordBatch]:
        """The rows of a resolved query whose key lies in `part`, as of now, in batches of bounded size."""
        asked = query.of(DERIVED.get(query.table, query.table))
        schema = asked.spec.schema
        # Cast at once: a lake's strings come as views, for which Arrow lacks half of its functions.
        batches: Iterator[pa.RecordBatch] = (batch.select(schema.names).cast(schema) for batch in self._batches(asked, part))
        if query.table == "artifacts":
            from spark_tracking.readers.artifacts import list_artifacts

            batches = list_artifacts(batches)
        elif query.table == "datasets":
            batches = map(explode_datasets, batches)
        yield from (batch for batch in batches if batch.num_rows)

    def check_filter(self, query: Query) -> None:
        """Parse the filter.

        Raises:
            InvalidInput: it does not parse, or the query is of a state that the server does not keep.
        """
        parse_located(query.spec.kind, query.filter)
        if query.version is not None or query.timestamp is not None:
            raise InvalidInput(f"version= and timestamp= are for lakes; {self.noun} keeps no past states.")

    @property
    @abstractmethod
    def name(self) -> str:
        """The server in words, without anything secret."""

    @abstractmethod
    def ping(self) -> None:
        """Ask the server something cheap, so that a server that is not there is found out early."""

    def experiments(self, query: Query) -> dict[str, str]:
        """The names, by id, of the experiments that the query names, deleted ones included; missing ones are left out."""
        found: dict[str, str] = {}
        for batch in self.read(Query("experiments_latest", view_type="all", ordered=False)):
            found |= zip(batch["experiment_id"].to_pylist(), batch["name"].to_pylist())
        return {id: name for id, name in found.items() if id in (query.experiment_ids or ()) or name in query.experiment_names}

    @abstractmethod
    def split(self, query: Query, parts: int | None) -> list[Range]:
        """Ranges that cover the whole key space, each key once, for tasks of about equal size.

        Args:
            parts: how many; None lets the reader choose by the amount of data.
        """

    @abstractmethod
    def _batches(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        """The rows of a table that is not made from another; at least the columns of its schema."""

    # -- what else whoever follows a server asks of it ----------------------------------------------------------

    def state(self) -> bytes | None:
        """What is the same as long as nothing has changed; None where that cannot be told without looking at all."""
        return None

    def run_count(self, experiment_ids: Sequence[str]) -> int | None:
        """How many runs some experiments have; None where asking is listing."""
        return None

    def point_counts(self) -> dict[str, int]:
        """How many points each run has; empty where the server cannot count."""
        counts: dict[str, int] = {}
        for batch in self._point_counts():
            for run, points in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist()):
                counts[run] = counts.get(run, 0) + points
        return counts

    def _point_counts(self) -> Iterator[pa.RecordBatch]:
        """Batches of run ids and counts."""
        return iter(())

    def points_of(self, runs: Sequence[Row]) -> pa.Table:
        """All points of some runs, rows of `runs_latest`, in the columns of `run_metrics_history`."""
        experiments, ids = tuple({run["experiment_id"] for run in runs}), tuple(run["run_id"] for run in runs)
        query = Query("run_metrics_history", experiments, view_type="all", ordered=False, run_ids=ids)
        return pa.Table.from_batches(self.read(query) if runs else (), query.spec.schema)

    def complete(self, runs: Sequence[Row]) -> None:
        """Put the models that runs read and made into rows of `runs_latest`, where a listing does not tell them."""
        del runs  # by default it does

    def artifact_uri(self, uri: str | None) -> str | None:
        """An artifact URI of the server's, as one can follow it from elsewhere."""
        return uri


def explode_datasets(runs: pa.RecordBatch) -> pa.RecordBatch:
    """The rows of `datasets` that a batch of `runs_latest` holds."""
    lists = runs.column("datasets")
    structs = pc.list_flatten(lists)
    parents = pc.list_parent_indices(lists)
    columns = [runs.column(name).take(parents) for name in ("run_id", "experiment_id")]
    columns += [pc.struct_field(structs, index) for index in range(structs.type.num_fields)]
    return pa.RecordBatch.from_arrays(columns, schema=DATASETS)


def in_order(batches: Iterable[pa.RecordBatch], query: Query) -> Iterator[pa.RecordBatch]:
    """The rows of a table in its order."""
    schema = query.spec.schema
    table = pa.Table.from_batches(
        (batch.cast(schema) for batch in batches), schema
    )  # DataFusion gives string views, which cannot be sorted
    yield from table.sort_by([(name, "ascending") for name in query.spec.order]).to_batches(BATCH_ROWS)
