"""A derived table as a process reads it: rows by key, and how far it covers the logs."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pyarrow as pa

from spark_tracking.kinds.rows import rows as project_rows
from spark_tracking.kinds.state import Entity
from spark_tracking.lake.columns import among
from spark_tracking.lake.log import Table, quoted, transaction
from spark_tracking.lake.tables import LOGS, TableSpec

FILE_BYTES = 1_200_000
"""Size of a derived table's files: a change rewrites the files it touches, so they stay small (~5,000 runs)."""
LOG_FILE_BYTES = 64 * 1024 * 1024
FULL_FILES = 64
"""Files of a table beyond which they are made larger, as every reader looks at the list of them."""


def file_bytes(table: Table) -> int:
    """The size that files of a table should have, by what it holds."""
    least = FILE_BYTES if table.spec.kind else LOG_FILE_BYTES
    return max(least, int(sum(table.files()["size_bytes"].to_pylist())) // FULL_FILES)


class DerivedTable(Table):
    """The newest known state of all entities of one kind, as of its watermarks."""

    def __init__(self, root: str, spec: TableSpec) -> None:
        super().__init__(root, spec)
        self._watermarks: dict[str, int] | None = None
        self._greatest: tuple[int, str | None] | None = None

    def update(self) -> int:
        """Bring the handle to the newest version; returns it."""
        before = self.version()
        version = super().update()
        self.seen = version
        if version != before:
            self._watermarks = None
        return version

    @property
    def watermarks(self) -> dict[str, int]:
        """For each log, the version up to which this table covers it; -1 for nothing yet."""
        if self._watermarks is None:
            marks = {spec.name: self.transaction(spec.name) for spec in LOGS}
            self._watermarks = {name: -1 if mark is None else mark for name, mark in marks.items()}
        return self._watermarks

    def lookup(self, ids: Collection[str]) -> dict[str, Entity]:
        """The entities with these ids that have a row."""
        greatest = self._greatest_key()
        ids = [id for id in ids if greatest is None or id <= greatest]
        if not ids:
            return {}
        key = self.spec.key
        found = self.select(among(key, ids), [key, "state"])
        pairs = zip(found[key].to_pylist(), found["state"].to_pylist())
        return {id: Entity.unpack(self.spec.kind, id, state) for id, state in pairs}

    def _greatest_key(self) -> str | None:
        """No row's key is greater, by the files' statistics (None: unknown). New runs' ids are, so that no file is opened for them."""
        version = self.version()
        if self._greatest is None or self._greatest[0] != version:
            files, name = self.files(), f"max.{self.spec.key}"
            keys = files[name].to_pylist() if name in files.column_names else [None] * files.num_rows
            self._greatest = version, None if None in keys else max(keys, default="")
        return self._greatest[1]

    def write(self, entities: Iterable[Entity], stored: Collection[str], watermarks: dict[str, int]) -> None:
        """Put the entities' rows in place of those with the ids `stored`, covering the logs up to `watermarks`.

        Raises:
            Raced: another process refreshed first.
        """
        rows: pa.Table = project_rows(self.spec.kind, entities)
        transactions = [transaction(name, version) for name, version in watermarks.items()]
        # delta-rs checks that what is written satisfies the predicate, so it names the new rows, too
        ids = sorted({*stored, *rows[self.spec.key].to_pylist()})
        predicate = f"{self.spec.key} IN ({quoted(ids)})" if stored else None
        self.rewrite(rows, predicate, transactions, file_bytes(self))
        self._watermarks = None

    def replace(self, entities: Iterable[Entity], watermarks: dict[str, int]) -> None:
        """Put the entities' rows in place of all that stand there.

        Raises:
            Raced: another process refreshed first.
        """
        rows: pa.Table = project_rows(self.spec.kind, entities)
        self.rewrite(rows, "", [transaction(name, version) for name, version in watermarks.items()], file_bytes(self))
        self._watermarks = None
