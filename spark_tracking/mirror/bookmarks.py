"""What a lake remembers of a source: for each thing of it, the digest of its row as it was when it was last copied.

They lie below the lake's root in `_sync/<source>/`, in Arrow files that are written whole, once; of two entries the one in the later file
counts. A file is written after the lake holds what it speaks of, so a sync that is killed copies some things again, which changes
nothing. Without the files a sync is slow, not wrong.
"""

from __future__ import annotations

import struct
import threading
import time
import uuid
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from spark_tracking.delta import storage

SCHEMA = pa.schema([("kind", pa.string()), ("id", pa.string()), ("digest", pa.binary()), ("points", pa.int64()), ("base", pa.binary())])
FILES_KEPT = 8
ROWS_PER_FILE = 5_000
_LONGEST_BASE = 4_500
_HEAD = struct.Struct("<16sq")


class Bookmark(NamedTuple):
    """What is known of one thing of the source; `points` of a run, where the source can count them."""

    digest: bytes
    points: int | None
    base: bytes


class Bookmarks:
    """The bookmarks of one source in one lake. Several syncs at once may each have one; they add to each other's files."""

    def __init__(self, root: str | None, source: str, dry_run: bool = False) -> None:
        self._folder = f"_sync/{source}"
        self._storage = None if root is None else storage.of(root)
        self._dry_run = dry_run
        self._pending: list[tuple[str, str, bytes, int | None, bytes]] = []
        self._lock = threading.RLock()
        self._learned: dict[tuple[str, str], Bookmark] = {}
        self._files = self._listed()
        self._rows, self._table = self._load()

    def get(self, kind: str, id: str) -> Bookmark | None:
        """The bookmark of one thing."""
        if (kind, id) in self._learned:
            return self._learned[kind, id]
        row = self._rows.get((kind, id))
        return None if row is None else Bookmark(*(self._table[name][row].as_py() for name in ("digest", "points", "base")))

    def is_same(self, kind: str, id: str, digest: bytes) -> bool:
        """Whether a thing's row is as it was when it was last copied."""
        if (kind, id) in self._learned:
            return self._learned[kind, id].digest == digest
        row = self._rows.get((kind, id))
        return row is not None and self._digests[row] == digest

    def ids(self, kind: str) -> set[str]:
        """What was copied of a kind."""
        return {id for k, id in (*self._rows, *self._learned) if k == kind}

    def learn(self, kind: str, id: str, bookmark: Bookmark) -> None:
        """Take from elsewhere that a thing was copied, for this sync; `put` alone shows in the next one."""
        self._learned[kind, id] = bookmark

    def put(self, kind: str, id: str, bookmark: Bookmark) -> None:
        """Remember that a thing was copied; `save` makes it last."""
        with self._lock:
            if self._rows and (kind, id) not in self._learned and self.get(kind, id) == bookmark:
                return  # it is remembered already
            self._pending.append((kind, id, *bookmark))
            if len(self._pending) >= ROWS_PER_FILE:
                self.save()

    def drop(self, kind: str, id: str) -> None:
        """Forget a thing that is gone."""
        self._learned.pop((kind, id), None)
        self._pending.append((kind, id, b"", None, b""))

    def clear(self) -> None:
        """Look at nothing that is remembered, in this sync."""
        self._rows.clear()
        self._learned.clear()

    def save(self) -> None:
        """Write what was put; no file when there is nothing."""
        with self._lock:
            pending, self._pending = self._pending, []
            if pending and self._storage is not None and not self._dry_run:
                self._files.append(self._write(_table(pending)))

    def tidy(self) -> None:
        """Merge the files that this sync knows of once there are many. What another sync added meanwhile stays."""
        self.save()
        if len(self._files) <= FILES_KEPT or self._storage is None:
            return
        rows, table = self._load()
        merged = self._write(table.take(pa.array(sorted(rows.values()), pa.int64())))
        for name in self._files:
            self._remove(f"{self._folder}/{name}")
        self._files = [merged]

    def _listed(self) -> list[str]:
        try:
            return [] if self._storage is None else sorted(file.name for file in self._storage.files(self._folder))
        except FileNotFoundError:
            return []  # the first sync

    def _load(self) -> tuple[dict[tuple[str, str], int], pa.Table]:
        tables = [SCHEMA.empty_table()]
        for name in self._files:
            try:
                assert self._storage is not None
                tables.append(pa.ipc.open_file(pa.BufferReader(self._storage.read(f"{self._folder}/{name}"))).read_all())
            except FileNotFoundError:
                continue  # another sync merged it into a file that is not listed yet: those things are compared again
        table = pa.concat_tables(tables).combine_chunks()
        self._digests: list[bytes] = table["digest"].to_pylist()
        rows = {key: row for row, key in enumerate(zip(table["kind"].to_pylist(), table["id"].to_pylist()))}
        return {key: row for key, row in rows.items() if self._digests[row]}, table

    def _write(self, table: pa.Table) -> str:
        assert self._storage is not None
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, SCHEMA) as writer:
            writer.write_table(table)
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.arrow"
        self._storage.prepare([self._folder])
        self._storage.create(f"{self._folder}/{name}", sink.getvalue().to_pybytes())
        return name

    def _remove(self, path: str) -> None:
        store: Any = self._storage
        if "://" in store.root:
            store.delete([path])
        else:
            (Path(store.root) / path).unlink(missing_ok=True)


def _table(rows: list[tuple[str, str, bytes, int | None, bytes]]) -> pa.Table:
    columns = zip(*rows)
    return pa.Table.from_arrays([pa.array(column, field.type) for column, field in zip(columns, SCHEMA)], schema=SCHEMA)


def packed(bookmark: Bookmark) -> str:
    """A bookmark as the value of a tag; without its base where that is long, which only keeps removals from being seen."""
    base = bookmark.base if len(bookmark.base) * 4 // 3 < _LONGEST_BASE else b""
    points = -1 if bookmark.points is None else bookmark.points
    return b64encode(_HEAD.pack(bookmark.digest, points) + base).decode()


def unpacked(text: str | None) -> Bookmark | None:
    """The inverse of `packed`; None where there is none, or somebody wrote something else there."""
    if not text:
        return None
    try:
        data = b64decode(text)
        digest, points = _HEAD.unpack_from(data)
    except (ValueError, struct.error):
        return None
    return Bookmark(digest, None if points < 0 else points, data[_HEAD.size :])
