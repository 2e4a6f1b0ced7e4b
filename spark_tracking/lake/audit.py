"""The files of tables held against what is said of them, and rows that a log has lost and the lake still holds elsewhere.

A log is a set that only grows (see `kinds.state`), so a row that comes back twice does no harm, and one is lost only if it is
nowhere in the log and its run or model was not purged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from posixpath import basename
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spark_tracking.delta.faults import first_line, is_foreign
from spark_tracking.delta.storage import Storage
from spark_tracking.delta.table import Table, TableSpec
from spark_tracking.kinds.state import Entity, Event, MetricBlock
from spark_tracking.lake.journal_record import PackedBlock, Record, pack_block
from spark_tracking.lake.log_rows import event_rows, metric_rows, record_ids_of, wall_time
from spark_tracking.lake.replay import Entities, lacking
from spark_tracking.lake.tables import EVENTS_LOG, METRICS_LOG


@dataclass(frozen=True)
class Piece:
    """A live data file of a table.

    Attributes:
        path: relative to the table.
        rows: what stands in it and is `intact`; None where it cannot be read.
        fault: what is wrong with it; '' for nothing.
        count: how many rows were written, by the log.
    """

    path: str
    rows: pa.Table | None
    fault: str
    count: int


def pieces(files: Storage, table: Table) -> Iterator[Piece]:
    """Every live file at the handle's version, read whole and counted.

    Raises:
        FileNotFoundError: a file went away meanwhile, as another process compacted and vacuumed.
    """
    there = {file.name: file.size for file in files.files(table.spec.name)}
    fragments = {basename(fragment.path): fragment for fragment in table.dataset().get_fragments()}
    for told in table.files().to_pylist():
        name = basename(told["path"])
        if name not in there:
            yield Piece(told["path"], None, "is missing", told["num_records"])
            continue
        if there[name] != told["size_bytes"]:
            yield Piece(told["path"], None, f"has {there[name]:,} bytes where {told['size_bytes']:,} were written", told["num_records"])
            continue
        try:
            rows = table.rows_of(fragments[name])
            rows.validate(full=True)
        except FileNotFoundError:
            raise
        except Exception as error:
            if not is_foreign(error):
                raise
            yield Piece(told["path"], None, f"cannot be read: {first_line(str(error))}", told["num_records"])
            continue
        kept = intact(table.spec, rows)
        yield Piece(told["path"], kept, _content_fault(table.spec, rows, kept, told), told["num_records"])


_FREE = {"events": {"value"}, "run_metrics_history": {"account_id", "workspace_id", "model_id", "dataset_name", "dataset_digest"}}
"""Columns of the logs that may be null."""


def intact(spec: TableSpec, rows: pa.Table) -> pa.Table:
    """The rows whose columns bear each other out: nothing null that must not be, times as clocks have them, `record_id` the hash it is."""
    needed = [spec.key, "state"] if spec.kind else [name for name in rows.column_names if name not in _FREE[spec.name]]
    for name in needed:
        if rows[name].null_count:
            rows = rows.filter(pc.is_valid(rows[name]))
    if spec.kind or not rows.num_rows:
        return rows
    right = pc.equal(rows["insert_time"], wall_time(rows["hlc"]))
    if spec is METRICS_LOG:
        right = pc.and_(right, pc.equal(rows["record_id"], record_ids_of(rows)))
    return rows if pc.all(right).as_py() else rows.filter(right)


def _content_fault(spec: TableSpec, rows: pa.Table, kept: pa.Table, told: dict[str, Any]) -> str:
    """What of a file's rows contradicts its statistics, or another column."""
    if rows.num_rows != told["num_records"]:
        return f"has {rows.num_rows:,} rows where {told['num_records']:,} were written"
    if kept.num_rows != rows.num_rows:
        return f"has changed: {rows.num_rows - kept.num_rows:,} of its rows contradict themselves"
    if not spec.kind and rows.num_rows and told.get("min.hlc") is not None:
        clocks = pc.min_max(rows["hlc"]).as_py()
        if (clocks["min"], clocks["max"]) != (told["min.hlc"], told["max.hlc"]):
            return "has changed: clocks of its rows contradict the file's statistics"
    return ""


def _strays(files: Storage, table: Table, live: set[str]) -> list[pa.Table]:
    """The rows of Parquet files that no version of the table is known to have named, in the table's schema.

    A commit that is lost leaves its file behind; so does a writer that was killed before its commit.
    """
    there = [file.name for file in files.files(table.spec.name) if file.name.endswith(".parquet") and file.name not in live]
    named = table.commits.named() if there else set()
    found = []
    for name in there:
        if name in named:
            continue
        try:
            rows = pq.read_table(pa.BufferReader(files.read(f"{table.spec.name}/{name}")))
            found.append(rows.select(table.spec.schema.names).cast(table.spec.schema))
        except Exception as error:  # half of a file, or a foreign one
            if not (is_foreign(error) or isinstance(error, (KeyError, ValueError))):
                raise
    return found


_KEYS = {
    "events": ["hlc", "writer", "kind", "id", "field", "key"],
    "run_metrics_history": ["run_id", "metric_name", "metric_step", "record_id"],
}


def lost_rows(files: Storage, events: Table, log: Table, flushed: pa.Table, known: Mapping[str, pa.Array]) -> pa.Table:
    """The rows that `log` has lost and that files without a commit, or journals, have.

    Args:
        events: the events log, where purges stand.
        flushed: what journals hold and the log should have.
        known: by kind, the ids that the derived tables show.
    """
    live = {basename(path) for path in log.files()["path"].to_pylist()}
    left = _strays(files, log, live)
    if log.spec is EVENTS_LOG:
        left = [rows.filter(_acknowledged(rows, known)) for rows in left]
    held = pa.concat_tables([flushed, *left])
    if not held.num_rows:
        return held
    held = held.filter(pc.invert(_purged(events, held, "kind" in held.column_names)))
    keys = _KEYS[log.spec.name]
    wanted = held["hlc"].unique()
    stored = [rows.filter(pc.is_in(rows["hlc"], wanted)).select(keys) for rows in log.undamaged(sorted({*keys, "hlc"}))]
    missing = held.join(pa.concat_tables(stored), keys, join_type="left anti") if stored else held
    return missing.select(held.column_names).group_by(held.column_names, use_threads=False).aggregate([]).cast(log.spec.schema)


def _acknowledged(rows: pa.Table, known: Mapping[str, pa.Array]) -> pa.Array:
    """Which rows of a file without a commit were acknowledged for sure.

    What went through a journal was. A commit of names, or a purge, may have lost its race: of a purge the derived tables tell, and
    what is named comes back from their rows.
    """
    purge = pc.equal(rows["field"], "purge")
    sure = pa.array([False] * rows.num_rows)
    for kind in ("run", "logged_model"):
        ours = pc.equal(rows["kind"], kind)
        gone = pc.and_(purge, pc.invert(pc.is_in(rows["id"], known[kind])))
        sure = pc.or_(sure, pc.and_(ours, pc.or_(gone, pc.invert(pc.is_in(rows["field"], pa.array(["purge", "purged_run"]))))))
    return sure


def _purged(events: Table, rows: pa.Table, are_events: bool) -> pa.Array:
    """Which rows are of a run or model that was purged, so that they went from the log on purpose."""
    tombstones = [t.filter(pc.equal(t["field"], "purge")) for t in events.undamaged(["kind", "id", "field"])]
    stones = pa.concat_tables(tombstones) if tombstones else EVENTS_LOG.schema.empty_table()
    gone = {kind: stones.filter(pc.equal(stones["kind"], kind))["id"].combine_chunks() for kind in ("run", "logged_model")}
    if not are_events:
        return pc.is_in(rows["run_id"], gone["run"])
    of_kind = [pc.and_(pc.equal(rows["kind"], kind), pc.is_in(rows["id"], ids)) for kind, ids in gone.items()]
    return pc.or_(*of_kind)


def rows_of_state(truth: Entities, stored: Entities) -> tuple[pa.Table, pa.Table]:
    """What derived rows know and the logs do not, as rows of both logs: each register's last value, each metric's latest point.

    Points that are neither a metric's latest nor a model's cannot be had from a derived row.
    """
    changes: list[tuple[str, Record]] = []
    points: list[tuple[str, Record]] = []
    for key, entity in stored.items():
        registers, latest, of_model = lacking(truth.get(key), entity)
        for name, at, register in registers:
            event = Event(entity.kind, entity.id, name, at, register.value)
            changes.append((register.stamp.writer, Record(register.stamp.hlc, 0, [event], [])))
        experiment = entity.attr("experiment_id") or ""
        blocks = [MetricBlock(entity.id, experiment, [n], [f.latest.value], [f.latest.time], [f.latest.step]) for n, f in latest.items()]
        blocks += [
            MetricBlock(p.run_id, experiment, [p.name], [v], [p.time], [p.step], entity.id, p.dataset_name, p.dataset_digest)
            for p, v in of_model.items()
        ]
        packed = [PackedBlock(b.run_id, b.model_id, pack_block(b)) for b in blocks]
        points += [("", Record(_last_clock(entity), 0, [], packed))] if packed else []
    return event_rows(changes), metric_rows(points)


def _last_clock(entity: Entity) -> int:
    """The newest stamp that is known of a thing."""
    return max((register.stamp.hlc for registers in entity.fields.values() for register in registers.values()), default=0)
