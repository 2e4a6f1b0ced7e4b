"""A derived table as a process reads it: rows by key, and how far it covers the logs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import pyarrow as pa

from spark_tracking.delta.table import Table, TableSpec
from spark_tracking.kinds.lake_sql import one_of
from spark_tracking.kinds.rows import rows as project_rows
from spark_tracking.kinds.state import Entity
from spark_tracking.lake.log_rows import among
from spark_tracking.lake.tables import LOGS


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

    def lost_ends(self, logs: Mapping[str, Table]) -> Iterator[tuple[str, int, int]]:
        """The logs that end before what this table covers: name, newest version, version that is covered."""
        for name, covered in self.watermarks.items():
            if logs[name].version() < covered and (newest := logs[name].update()) < covered:
                yield name, newest, covered

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

    def write(self, entities: Iterable[Entity], stored: Collection[str] | None, watermarks: dict[str, int]) -> None:
        """Put the entities' rows in place of those with the ids `stored` (None: of all), covering the logs up to `watermarks`.

        Raises:
            Raced: another process refreshed first.
        """
        rows: pa.Table = project_rows(self.spec.kind, entities)
        # delta-rs checks that what is written satisfies the predicate, so it names the new rows, too
        predicate = one_of(self.spec.key, sorted({*stored, *rows[self.spec.key].to_pylist()})) if stored else None
        self.rewrite(rows, "" if stored is None else predicate, watermarks)
        self._watermarks = None
