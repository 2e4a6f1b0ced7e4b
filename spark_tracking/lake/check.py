"""`lake check`: prove that what readers see is what was acknowledged.

The state is rebuilt from nothing but the logs and the journals, and compared with the state that readers get, entity by
entity; then the files on disk are compared with what the tables refer to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow.compute as pc

from spark_tracking.lake.columns import fold_rows
from spark_tracking.lake.journal import writer_of
from spark_tracking.lake.log import Table
from spark_tracking.lake.maintain import open_table
from spark_tracking.lake.record import damaged
from spark_tracking.lake.refresh import Folding
from spark_tracking.lake.state import Entity, Stamp
from spark_tracking.lake.storage import AnyJournal, Storage
from spark_tracking.lake.tables import BY_NAME, DERIVED, EVENTS_LOG, METRICS_LOG, TableSpec
from spark_tracking.lake.view import View

SHOWN = 20


@dataclass
class Report:
    """What a check found.

    Attributes:
        counted: how many entities of each kind the logs know.
        problems: one sentence each; an empty list proves the lake right.
        notes: what is worth knowing and no fault.
    """

    counted: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def check(files: Storage, view: View) -> Report:
    """Check the lake as of now; `view` is a freshly polled reader's.

    Writers may go on meanwhile: an entity that differs is compared again before it counts.
    """
    report = Report(problems=_shown(_missing_files(files)))
    if report.problems:  # the rest cannot be read
        return report
    truth = rebuild_state(files)
    for spec in DERIVED:
        mine = {id: e for (kind, id), e in truth.items() if kind == spec.kind and e.exists}
        report.counted[spec.kind] = len(mine)
        report.problems += _shown(_differences(spec.kind, mine, view)) + _shown(_doubled(files, spec))
    report.problems += _journal_problems(files.journal())
    report.notes += _dangling(files, truth)
    return report


def _shown(problems: Iterator[str]) -> list[str]:
    found = list(problems)
    return found if len(found) <= SHOWN else [*found[:SHOWN], f"... and {len(found) - SHOWN:,} more of this kind"]


def rebuild_state(files: Storage) -> Folding:
    """Everything the journals and the logs say, folded; journals first, as rows move from there to the logs."""
    entities = Folding()
    journal = files.journal()
    records = [(s, r) for s in journal.segments() for r in journal.read(s, 0) or ()]
    events, metrics = Table(files.root, EVENTS_LOG), Table(files.root, METRICS_LOG)
    fold_rows(entities, events.select(None), METRICS_LOG.schema.empty_table())
    for batch in metrics.batches():
        fold_rows(entities, EVENTS_LOG.schema.empty_table(), batch)
    for segment, record in records:
        stamp = Stamp(record.hlc, writer_of(segment))
        for kind, id, name, key, value in record.events:
            entities[kind, id].fold(stamp, name, key, value)
        for block in record.blocks:
            entities["run", block.run_id].fold_block(block.unpack())
            if block.model_id:
                entities["logged_model", block.model_id].fold_block(block.unpack())
    return entities


def _differences(kind: str, truth: dict[str, Entity], view: View) -> Iterator[str]:
    ids = set(truth) | set(view.ids(kind))
    seen = view.get_many(kind, sorted(ids))
    for id in sorted(ids):
        expected, found = truth.get(id), seen.get(id)
        if expected is None and found is None:
            continue  # news of something whose creation is not there (yet)
        if expected is None or found is None:
            where = "in the derived table but not in the logs" if expected is None else "in the logs but not shown"
            yield f"{kind} '{id}' is {where}. Mend it with: spark-tracking lake rebuild"
        elif not _holds(found, expected):
            yield f"{kind} '{id}' differs from what the logs say. Mend it with: spark-tracking lake rebuild"


def _holds(found: Entity, expected: Entity) -> bool:
    """Whether `found` has all of `expected`; it may have more, from a writer that went on meanwhile."""
    both = found.copy()
    both.merge(expected)
    return (both.fields, both.metrics, both.points) == (found.fields, found.metrics, found.points)


def _doubled(files: Storage, spec: TableSpec) -> Iterator[str]:
    counts = pc.value_counts(open_table(files.root, spec).select(None, [spec.key])[spec.key])
    for found in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist():
        yield f"{spec.kind} '{found['values']}' has {found['counts']} rows in {spec.name}. Mend it with: spark-tracking lake rebuild"


def _journal_problems(journal: AnyJournal) -> Iterator[str]:
    for piece in journal.pieces():
        for position in damaged(journal.content(piece) or b""):
            yield f"Journal segment '{piece.segment}' has a damaged record at byte {piece.start + position}; restore it from a backup."


def _missing_files(files: Storage) -> Iterator[str]:
    for spec in BY_NAME.values():
        paths = open_table(files.root, spec).files()["path"].to_pylist()
        there = {file.name for file in files.files(spec.name)}
        for path in paths:
            if path not in there:
                yield f"{spec.name}: the data file '{path}' is missing; restore it from a backup."


def _dangling(files: Storage, truth: Folding) -> Iterator[str]:
    live = {e.id for e in truth.values() if e.exists}
    for experiment in files.folders("artifacts"):
        for name in files.folders(f"artifacts/{experiment}"):
            folder = f"artifacts/{experiment}/{name}"
            ids = files.folders(folder) if name == "models" else [name]
            yield from (
                f"Artifacts of '{id}' lie in '{files.root}/{folder}', but no such run or model is known." for id in ids if id not in live
            )
