"""Keeping a lake small: small files into large ones, old versions away, purged rows out of the logs.

All of it may run in any process at any time; optimistic concurrency decides, and who loses tries again later.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import pyarrow.compute as pc
import pyarrow.dataset as ds

from spark_tracking.delta.commit_log import CommitLog, Gone
from spark_tracking.delta.storage import Storage
from spark_tracking.delta.table import Raced, Table
from spark_tracking.errors import LakeCorrupt, LakeError, NoSpace
from spark_tracking.kinds.lake_sql import one_of
from spark_tracking.lake.derived_table import DerivedTable
from spark_tracking.lake.tables import BY_NAME, EVENTS_LOG, METRICS_LOG

PURGED_AT_ONCE = 500
ORPHAN_HOURS = 24
_DATA_FILE = re.compile(r"part-\d{5}-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}[-.]c\d{3}(\.\w+)*\.parquet")
"""How delta-rs and Spark name the data files that they write."""
KEEP = timedelta(minutes=15)
"""How long a file stays after it went out of use: longer than a query that began on it."""


@dataclass(frozen=True)
class TableInfo:
    """What `lake info` tells of one table. Sizes in bytes."""

    name: str
    version: int
    rows: int
    files: int
    size: int


def tables(root: str) -> list[Table]:
    """A handle of its own for each table."""
    return [DerivedTable(root, spec) if spec.kind else Table(root, spec) for spec in BY_NAME.values()]


def vacuum(table: Table, keep: timedelta, oldest_needed: int, dry_run: bool = False, orphans: bool = False) -> list[str]:
    """Remove files that went out of use longer than `keep` ago.

    Args:
        oldest_needed: the oldest version that somebody still reads from (a watermark), whatever its age.
        orphans: also remove what writers that were killed left, or versions that the log has forgotten, once it is a day old.

    Returns:
        The files removed, or that would be, relative to the table.
    """
    version = table.update()
    kept = table.commits.since(time.time() - keep.total_seconds())
    keep_versions = sorted({*kept, *range(max(oldest_needed, 0), version), version})
    gone = table.outdated(keep_versions)
    if orphans:  # never by full=True: that deletes all that the log does not name, whosever it is, and follows links
        gone |= set(_orphans(table, keep_versions[0]))
    if not dry_run:  # not by Delta's own hand, which commits first: a full disk has no room for that
        table.remove(gone)
    return sorted(gone)


def require_sound(files: Storage) -> None:
    """Refuse to remove files of tables whose logs are damaged: rows that a lost commit named are found nowhere else.

    Raises:
        LakeCorrupt: a commit or checkpoint is missing or damaged.
    """
    for spec in BY_NAME.values():
        found = CommitLog(files, spec.name).faults()
        if found.versions or found.checkpoints or found.newest < 0:
            raise LakeCorrupt(
                f"The Delta log of '{files.root}/{spec.name}' is damaged, so that nothing of the lake was removed. See what is wrong with: "
                "spark-tracking lake check; mend it with: spark-tracking lake rebuild"
            )


@contextmanager
def on_a_full_disk() -> Iterator[None]:
    """What would be good to do first, and needs space; where there is none, it comes after."""
    try:
        yield
    except LakeError as error:
        if not isinstance(error, NoSpace):
            raise


def _orphans(table: Table, oldest_kept: int) -> list[str]:
    """Old data files that no version from the oldest kept one on names, told from files of others by the names that Delta writers give."""
    before = time.time() - ORPHAN_HOURS * 3600
    try:
        named = table.named_since(oldest_kept)
    except Gone:
        return []
    return [file.name for file in table.entries() if _DATA_FILE.fullmatch(file.name) and file.modified < before and file.name not in named]


def foreign(root: str, remove: bool = False) -> dict[str, list[str]]:
    """By table, files and folders (`name/`) in its folder that no version names and no writer of Delta tables would name so."""
    found = {}
    for table in tables(root):
        named = set(table.files()["path"].to_pylist())
        entries = [*(file.name for file in table.entries()), *table.folders()]
        found[table.spec.name] = sorted(name for name in entries if is_stray(name) and name not in named)
        if remove:
            table.remove(found[table.spec.name])
    return {name: entries for name, entries in found.items() if entries}


def is_stray(name: str) -> bool:
    """Whether nothing of a Delta table is called so."""
    return not name.startswith(("_", ".")) and not _DATA_FILE.fullmatch(name)


def drop_purged_rows(root: str) -> int:
    """Remove the log rows of purged runs and logged models, except the tombstones; returns how many rows went."""
    events, metrics = Table(root, EVENTS_LOG), Table(root, METRICS_LOG)
    removed = 0
    for kind in ("run", "logged_model"):
        of_kind = pc.field("kind") == kind
        purged = events.select(of_kind & (pc.field("field") == "purge"), ["id"])["id"].unique().to_pylist()
        for ids in _batches(sorted(purged)):
            rest = of_kind & (pc.field("field") != "purge") & pc.field("id").isin(ids)
            removed += _delete(events, rest, f"kind = '{kind}' AND field != 'purge' AND {one_of('id', ids)}")
            if kind == "run":
                removed += _delete(metrics, pc.field("run_id").isin(ids), one_of("run_id", ids))
    return removed


def info(root: str) -> list[TableInfo]:
    """Each table's version, rows, files and size."""
    found = []
    for table in tables(root):
        adds = table.files()
        rows, size = sum(adds["num_records"].to_pylist()), sum(adds["size_bytes"].to_pylist())
        found.append(TableInfo(table.spec.name, table.version(), rows, adds.num_rows, size))
    return found


def _delete(table: Table, rows: ds.Expression, predicate: str) -> int:
    """Delete the rows that satisfy both forms of one condition; a lost race is no error: the next time does it.

    By an overwrite with nothing: delta-rs' own DELETE writes string views, in which pyarrow cannot compare.
    """
    table.update()
    count = table.count(rows)
    if not count:
        return 0
    try:
        table.rewrite(table.spec.schema.empty_table(), predicate, {})
    except Raced:
        return 0
    return int(count)


def _batches(ids: list[str]) -> Iterable[list[str]]:
    return (ids[i : i + PURGED_AT_ONCE] for i in range(0, len(ids), PURGED_AT_ONCE))
