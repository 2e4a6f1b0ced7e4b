"""Rows that a log has lost and that the lake still holds elsewhere: in files without a commit, in journals, in derived rows.

A log is a set that only grows (see `kinds.state`), so a row that comes back twice does no harm, and one is lost only if it is
nowhere in the log and its run or model was not purged.
"""

from __future__ import annotations

from collections.abc import Mapping
from posixpath import basename

import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.kinds.state import Entity, Event, MetricBlock
from spark_tracking.lake.audit import strays
from spark_tracking.lake.columns import event_rows, metric_rows
from spark_tracking.lake.log import Table
from spark_tracking.lake.record import PackedBlock, Record, pack_block
from spark_tracking.lake.replay import Entities, lacking
from spark_tracking.lake.storage import Storage
from spark_tracking.lake.tables import EVENTS_LOG

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
    left = strays(files, log, live)
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
