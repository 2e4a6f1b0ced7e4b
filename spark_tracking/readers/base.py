"""The one interface of the readers, and the tables that are made from others."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.errors import NotFound
from spark_tracking.readers.query import EVERYTHING, Query, Range
from spark_tracking.readers.schemas import DATASETS

_log = logging.getLogger(__name__)
DERIVED = {"datasets": "runs_latest", "artifacts": "runs_latest"}


class Reader(ABC):
    """One tracking server, read in bulk.

    A reader is made where it is used and never sent anywhere: it may hold connections. Its methods can be called from one
    thread at a time.
    """

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
        for name in query.experiment_names:
            if name in by_name:
                ids.append(by_name[name])
            else:
                missing.append(f"name '{name}'")
        if missing:
            shown = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
            raise NotFound(
                f"There is no experiment with {shown} on {self.name}. "
                "spark_tracking.read('experiments_latest') lists those there are; is it the right tracking server?"
            )
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

    @property
    @abstractmethod
    def name(self) -> str:
        """The server in words, without anything secret."""

    @abstractmethod
    def ping(self) -> None:
        """Ask the server something cheap, so that a server that is not there is found out early."""

    @abstractmethod
    def experiments(self, query: Query) -> dict[str, str]:
        """The names, by id, of the experiments that the query names, deleted ones included; missing ones are left out."""

    @abstractmethod
    def check_filter(self, query: Query) -> None:
        """Parse the filter.

        Raises:
            InvalidInput: it does not parse.
        """

    @abstractmethod
    def split(self, query: Query, parts: int | None) -> list[Range]:
        """Ranges that cover the whole key space, each key once, for tasks of about equal size.

        Args:
            parts: how many; None lets the reader choose by the amount of data.
        """

    @abstractmethod
    def _batches(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        """The rows of a table that is not made from another; at least the columns of its schema."""


def explode_datasets(runs: pa.RecordBatch) -> pa.RecordBatch:
    """The rows of `datasets` that a batch of `runs_latest` holds."""
    lists = runs.column("datasets")
    structs = pc.list_flatten(lists)
    parents = pc.list_parent_indices(lists)
    columns = [runs.column(name).take(parents) for name in ("run_id", "experiment_id")]
    columns += [pc.struct_field(structs, index) for index in range(structs.type.num_fields)]
    return pa.RecordBatch.from_arrays(columns, schema=DATASETS)
