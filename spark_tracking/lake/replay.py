"""Journals and logs folded from their beginning: what `rebuild`, `check` and `as_of` all begin with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from spark_tracking.delta.table import Table
from spark_tracking.kinds.state import Entity, MetricFold, ModelPoint, Register
from spark_tracking.lake.journal import writer_of
from spark_tracking.lake.journal_record import Record
from spark_tracking.lake.journals import AnyJournal
from spark_tracking.lake.log_rows import event_rows, fold_rows, metric_rows
from spark_tracking.lake.tables import EVENTS_LOG, METRICS_LOG

Entities = dict[tuple[str, str], Entity]


class Folding(defaultdict[tuple[str, str], Entity]):
    """Entities that come into being when they are first asked for."""

    def __init__(self, known: Entities | None = None) -> None:
        super().__init__(None, known or {})

    def __missing__(self, key: tuple[str, str]) -> Entity:
        entity = self[key] = Entity(*key)
        return entity


def replay(entities: Entities, events: Iterable[pa.Table], metrics: Iterable[pa.Table]) -> None:
    """Fold the rows of both logs, piece by piece so that memory does not grow with the history; events first, as a purge stands there."""
    for piece in events:
        fold_rows(entities, piece, METRICS_LOG.schema.empty_table())
    for piece in metrics:
        fold_rows(entities, EVENTS_LOG.schema.empty_table(), piece)


def of_logs(events: Table, metrics: Table, kind: str = "", until: ds.Expression | None = None) -> Folding:
    """What both logs say, at their handles' versions.

    Args:
        kind: of one kind of thing only.
        until: of these rows only.
    """
    entities = Folding()
    where = until
    if kind:
        of_kind = pc.field("kind") == kind
        where = of_kind if until is None else of_kind & until
    replay(entities, [events.select(where)], metrics.batches(until) if kind in ("", "run", "logged_model") else ())
    return entities


def fold_logs_of(entities: Entities, kind: str, events: Table, metrics: Table) -> None:
    """Fold all that both logs have, at their handles' versions, of some things of one kind."""
    ids = pa.array([id for _, id in entities], pa.string())
    rows = events.select((pc.field("kind") == kind) & pc.field("id").isin(ids))
    column = {"run": "run_id", "logged_model": "model_id"}.get(kind)
    points = metrics.select(pc.field(column).isin(ids)) if column else metrics.spec.schema.empty_table()
    everything = Folding(entities)  # a run's points may be of models that are not wanted
    fold_rows(everything, rows, points)


def journal_rows(journal: AnyJournal, log: Table) -> tuple[pa.Table, pa.Table]:
    """A log's rows that stand in journals: those that the log lacks, and those that it has by its own account.

    The log is brought to its newest version after them, so that nothing is missed.
    """
    found = [(segment, record) for segment in journal.segments() for record in journal.read(segment, 0) or ()]
    log.update()
    taken = {segment: log.transaction(segment) or 0 for segment in {segment for segment, _ in found}}
    rows = event_rows if log.spec.name == EVENTS_LOG.name else metric_rows

    def chosen(flushed: bool) -> Iterator[tuple[str, Record]]:
        return ((writer_of(s), record) for s, record in found if (record.end <= taken[s]) is flushed)

    return rows(list(chosen(False))), rows(list(chosen(True)))


def holds(mine: Entity | None, other: Entity) -> bool:
    """Whether `mine` has all that `other` knows; it may have more."""
    if mine is None:
        return not (other.fields or other.metrics or other.points or other.purged)
    if mine == other:
        return True
    both = mine.copy()
    both.merge(other)
    return (both.fields, both.metrics, both.points, both.purged) == (mine.fields, mine.metrics, mine.points, mine.purged) and not any(
        True for _ in contradictions(mine, other)
    )


def contradictions(mine: Entity, other: Entity) -> Iterator[tuple[str, str]]:
    """The registers of which both tell another value for the very same change: bytes of one of them have changed."""
    for name, registers in other.fields.items():
        for key, register in registers.items():
            here = mine.fields.get(name, {}).get(key)
            if here is not None and here.stamp == register.stamp and here.value != register.value:
                yield name, key


Lack = tuple[list[tuple[str, str, Register]], dict[str, MetricFold], dict[ModelPoint, float]]


def lacking(mine: Entity | None, other: Entity) -> Lack:
    """What `other` has and `mine` has not: registers, latest points of metrics, points of models."""
    mine = mine or Entity(other.kind, other.id)
    registers = []
    for name, held in other.fields.items():
        for key, register in held.items():
            old = mine.fields.get(name, {}).get(key)
            wins = old is None or ((register.stamp < old.stamp) if name == "param" else (register.stamp > old.stamp))
            if wins and not (mine.purged is not None and register.stamp <= mine.purged):
                registers.append((name, key, register))
    if mine.purged is not None:
        return registers, {}, {}
    latest = {n: f for n, f in other.metrics.items() if n not in mine.metrics or f.latest.beats(mine.metrics[n].latest)}
    gone = mine.fields.get("purged_run", {})
    points = {p: v for p, v in other.points.items() if p not in mine.points and p.run_id not in gone}
    return registers, latest, points
