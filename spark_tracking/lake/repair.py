"""`lake rebuild`: a lake that can be read again, with everything that any of its files still knows.

Delta logs are mended in place: a lost commit is replaced by an empty one, so that versions go on in sequence, and the rows of
its files come back from the files themselves. Then the logs get back what they lack, and the derived tables are made anew.
Nothing is removed: what cannot be read is set aside.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from spark_tracking.delta.commit_log import CommitLog
from spark_tracking.delta.faults import is_foreign
from spark_tracking.delta.folder import SET_ASIDE
from spark_tracking.delta.storage import Storage
from spark_tracking.delta.table import Table, TableSpec
from spark_tracking.errors import LakeCorrupt
from spark_tracking.lake.audit import lost_rows, pieces, rows_of_state
from spark_tracking.lake.derived_table import DerivedTable
from spark_tracking.lake.flush import Flusher
from spark_tracking.lake.journals import journal_of
from spark_tracking.lake.maintain import drop_purged_rows
from spark_tracking.lake.refresh import Refresher
from spark_tracking.lake.replay import Folding, holds, journal_rows, of_logs
from spark_tracking.lake.tables import BY_KIND, DERIVED, LOGS


@dataclass
class Rebuilt:
    """What a rebuild did.

    Attributes:
        things: how many things the logs know.
        restored: by log, how many rows it got back.
        set_aside: what could not be read or would have vanished, as paths below the root.
    """

    things: int = 0
    restored: dict[str, int] = field(default_factory=dict)
    set_aside: list[str] = field(default_factory=list)


def rebuild(files: Storage, force: bool) -> Rebuilt:
    """Make the derived tables anew from the logs, after the logs got back what they had lost.

    Args:
        force: go on where something is lost for good, and keep a copy of what is left of it.

    Raises:
        LakeCorrupt: something would vanish that the lake still shows, or files cannot be read that a backup may have.
    """
    done = Rebuilt()
    for spec in DERIVED:
        _mend_commits(files, spec, -1, done)
    covered = [DerivedTable(files.root, spec).watermarks for spec in DERIVED]
    for spec in LOGS:
        newest = max(marks[spec.name] for marks in covered)
        if not force and newest > 0 and not files.folders(spec.name):
            raise LakeCorrupt(
                f"The folder '{files.root}/{spec.name}' is gone, and with it the history. Restore it from a backup, or go on with what "
                "the other tables know of it: spark-tracking lake rebuild --force"
            )
        _mend_commits(files, spec, newest, done)
    flusher = Flusher(files.root, journal_of(files))
    refresher = Refresher(files.root, flusher.events, flusher.metrics)
    stored = Folding()
    for key, entity in refresher.stored():
        stored[key].merge(entity)
    known = {kind: pa.array([id for k, id in stored if k == kind], pa.string()) for kind in BY_KIND}
    logs = (flusher.events, flusher.metrics)
    for log in logs:
        _, flushed = journal_rows(journal_of(files), log)
        lost = lost_rows(files, flusher.events, log, flushed, known)
        _drop_unreadable(files, log, lost.num_rows, force, done)
        _append(log, lost, done)
    flusher.flush()
    _restore(files, refresher, stored, force, done)
    drop_purged_rows(files.root)  # whose removal from the logs may have been lost
    refresher.force = force
    done.things = refresher.rebuild()
    return done


def _mend_commits(files: Storage, spec: TableSpec, newest: int, done: Rebuilt) -> None:
    """Have a table's versions in sequence, up to `newest` at least, so that it opens.

    What cannot be told from the log, the table's files tell: their rows are put back later.
    """
    log = CommitLog(files, spec.name)
    for distrust in range(3):
        if log.faults().newest < 0:
            Table.create(files.root, spec)
        log.mend(newest, lambda: _first_commit(spec), distrust, done.set_aside)
        try:
            Table(files.root, spec).files()
            break
        except BaseException as error:
            if not is_foreign(error):
                raise


def _first_commit(spec: TableSpec) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        Table.create(scratch, spec)
        return Path(scratch, spec.name, "_delta_log", f"{0:020d}.json").read_bytes()


def _drop_unreadable(files: Storage, log: Table, found: int, force: bool, done: Rebuilt) -> None:
    """Take files that are gone or damaged out of a log, but for rows that are intact; the bytes are kept.

    Args:
        found: how many lost rows are found elsewhere.
    """
    bad = [piece for piece in pieces(files, log) if piece.fault]
    left = [piece.rows for piece in bad if piece.rows is not None]
    if sum(piece.count for piece in bad) > found + sum(rows.num_rows for rows in left) and not force:
        raise LakeCorrupt(
            f"'{log.spec.name}/{bad[0].path}' {bad[0].fault}"
            + (f", and {len(bad) - 1} more files" if len(bad) > 1 else "")
            + ". Restore the lake from a backup, or go on with what the other files still know: spark-tracking lake rebuild --force"
        )
    for piece in bad:
        if files.exists(f"{log.spec.name}/{piece.path}"):
            done.set_aside.append(files.set_aside(f"{log.spec.name}/{piece.path}"))
    if bad:
        log.delta.repair()
        log.reopen()
        for rows in left:
            _append(log, rows, done)


def _restore(files: Storage, refresher: Refresher, stored: Folding, force: bool, done: Rebuilt) -> None:
    """Give the logs back what derived rows know and they do not."""
    events, metrics = refresher.logs.values()
    truth = of_logs(events, metrics)
    if all(holds(truth.get(key), entity) for key, entity in stored.items()):
        return
    for log, rows in zip((events, metrics), rows_of_state(truth, stored)):
        _append(log, rows, done)
    if force:
        truth = of_logs(events, metrics)
        lost = [entity for key, entity in stored.items() if not holds(truth.get(key), entity)]
        if lost:
            columns = {"kind": [e.kind for e in lost], "id": [e.id for e in lost], "state": [e.pack() for e in lost]}
            sink, path = pa.BufferOutputStream(), f"{SET_ASIDE}/{time.time_ns()}-lost.parquet"
            pq.write_table(pa.table(columns), sink)
            files.prepare([SET_ASIDE])
            files.note(path, sink.getvalue().to_pybytes())
            done.set_aside.append(path)


def _append(log: Table, rows: pa.Table, done: Rebuilt) -> None:
    if rows.num_rows:
        log.append(rows, {})
        done.restored[log.spec.name] = done.restored.get(log.spec.name, 0) + rows.num_rows
