"""`lake check`: prove that what readers see is what was acknowledged, as far as files can prove it (docs/lake.md says how far).

Delta logs are followed version by version, every file is read and held against what Delta and its own columns say of it; then
the state is built from nothing but logs and journals, and compared, entity by entity and both ways, with what readers get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.delta.commit_log import CommitLog
from spark_tracking.delta.faults import explained, explaining, is_foreign
from spark_tracking.delta.folder import SET_ASIDE
from spark_tracking.delta.storage import Storage
from spark_tracking.delta.table import Table, TableSpec
from spark_tracking.errors import LakeError
from spark_tracking.kinds.state import Entity
from spark_tracking.lake.audit import lost_rows, pieces
from spark_tracking.lake.derived_table import DerivedTable
from spark_tracking.lake.journal_record import is_torn_write, unreadable
from spark_tracking.lake.journals import journal_of
from spark_tracking.lake.process_view import View
from spark_tracking.lake.replay import Folding, holds, journal_rows, replay
from spark_tracking.lake.tables import BY_NAME, DERIVED, LOGS

SHOWN = 20
ATTEMPTS = 5
_MEND = "Mend it with: spark-tracking lake rebuild"
_RESTORE = "Restore it from a backup, or put back what the lake still has: spark-tracking lake rebuild"


@dataclass
class Report:
    """What a check found.

    Attributes:
        counted: how many entities of each kind the logs know.
        problems: one sentence each, with what to do; an empty list proves the lake right.
        notes: what is worth knowing and no fault.
    """

    counted: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def check(files: Storage, look: Callable[[], View]) -> Report:
    """Check the lake as of now. Writers may go on meanwhile. `look`: a view that has seen everything up to now."""
    report = Report()
    try:
        _check(files, look, report)
    except Exception as error:
        if not (is_foreign(error) or isinstance(error, LakeError)):
            raise
        report.problems.append((error if isinstance(error, LakeError) else explained(error, files.root)).message)
    return report


def _check(files: Storage, look: Callable[[], View], report: Report) -> None:
    if "_journal" not in files.names() and files.is_local:
        report.problems.append("The folder '_journal' is gone, and with it every call that was not in the tables yet. " + _RESTORE)
        return
    _journals(files, report)
    tables: dict[str, Table] = {}
    for spec in BY_NAME.values():
        faults = list(_commit_faults(files, spec))
        report.problems += _shown(faults)
        try:
            with explaining(files.root):
                tables[spec.name] = DerivedTable(files.root, spec) if spec.kind else Table(files.root, spec)
        except LakeError as error:
            report.problems += [] if faults else [f"{spec.name} cannot be opened: {error.message}"]
    if len(tables) < len(BY_NAME):
        return  # the rest cannot be read
    for attempt in range(ATTEMPTS):
        found = Report()
        try:
            _compare(files, tables, look, found)
            break
        except FileNotFoundError:  # compacted and vacuumed by another process meanwhile
            if attempt + 1 == ATTEMPTS:
                raise
            for table in tables.values():
                table.update()
    report.counted = found.counted
    report.problems += found.problems
    report.notes += found.notes


def _compare(files: Storage, tables: dict[str, Table], look: Callable[[], View], report: Report) -> None:
    known: dict[str, pa.Array] = {}
    sound = True
    for spec in DERIVED:
        keys = pa.chunked_array([], pa.string())
        for piece in pieces(files, tables[spec.name]):
            if piece.fault:
                report.problems.append(f"{spec.name}: the file '{piece.path}' {piece.fault}. {_MEND}")
            if piece.rows is None:
                sound = False
            else:
                keys = pa.chunked_array([*keys.chunks, *piece.rows[spec.key].chunks], pa.string())
        known[spec.kind] = keys.combine_chunks()
        report.problems += _shown(_doubled(spec, keys))
    for spec in DERIVED:
        lost = tables[spec.name].lost_ends(tables)  # type: ignore[attr-defined]
        covers = f"though {spec.name} covers version"
        report.problems += [f"{name}: ends with version {newest}, {covers} {covered} of it. {_RESTORE}" for name, newest, covered in lost]
    seen = {spec.kind: _all(look(), spec.kind) for spec in DERIVED} if sound else {}
    truth = _truth(files, tables, known, report)
    if not sound:
        return
    for spec in DERIVED:
        mine = {id: e for (kind, id), e in truth.items() if kind == spec.kind}
        report.counted[spec.kind] = sum(e.exists for e in mine.values())
        report.problems += _shown(_differences(spec.kind, mine, seen[spec.kind], look))
    report.notes += _dangling(files, truth)


def _commit_faults(files: Storage, spec: TableSpec) -> Iterator[str]:
    found = CommitLog(files, spec.name).faults()
    advice = _MEND if spec.kind else _RESTORE
    if found.newest < 0 and not files.folders(spec.name):
        yield f"{spec.name}: the folder or its Delta log is gone. {advice}"
    for name, why in found.checkpoints.items():
        yield f"{spec.name}: the checkpoint '_delta_log/{name}' cannot be read ({why}). {advice}"
    versions = sorted(found.versions)
    while versions:
        first, told = versions[0], found.versions[versions[0]]
        last = first
        while versions and versions[0] <= last + 1 and found.versions[versions[0]] == told:
            last = versions.pop(0)
        which = f"version {first}" if first == last else f"each of the versions {first} to {last}"
        yield f"{spec.name}: {which} in its '_delta_log' {told}. {advice}"


def _truth(files: Storage, tables: dict[str, Table], known: dict[str, pa.Array], report: Report) -> Folding:
    """Everything the journals and the logs say, folded; journals first, as rows move from there to the logs."""
    truth, journal = Folding(), journal_of(files)
    events, metrics = (tables[spec.name] for spec in LOGS)
    rows = {log.spec.name: journal_rows(journal, log) for log in (events, metrics)}

    def content(log: Table) -> Iterator[pa.Table]:
        for piece in pieces(files, log):
            if piece.fault:
                report.problems.append(f"{log.spec.name}: the file '{piece.path}' {piece.fault}. {_RESTORE} --force")
            if piece.rows is not None:
                yield piece.rows
        yield rows[log.spec.name][0]

    replay(truth, content(events), content(metrics))
    for log in (events, metrics):
        lost = lost_rows(files, events, log, rows[log.spec.name][1], known).num_rows
        if lost:
            report.problems.append(f"{log.spec.name}: {lost:,} acknowledged rows are in files that no version names. {_RESTORE}")
    return truth


def _shown(problems: Iterable[str]) -> list[str]:
    found = list(problems)
    return found if len(found) <= SHOWN else [*found[:SHOWN], f"... and {len(found) - SHOWN:,} more of this kind"]


def _all(view: View, kind: str) -> dict[str, Entity]:
    return view.get_many(kind, view.ids(kind))


def _differences(kind: str, truth: dict[str, Entity], seen: dict[str, Entity], look: Callable[[], View]) -> Iterator[str]:
    """Both ways: `seen` was read before `truth` and must be in it, and `truth` in what a look after it sees."""
    empty = Entity(kind, "")
    suspects = [id for id in sorted({*truth, *seen}) if _shown_of(truth.get(id)) != seen.get(id)]
    lost = {id for id in suspects if id in seen and not holds(truth.get(id), seen[id])}
    later = look().get_many(kind, suspects) if suspects else {}
    for id in suspects:
        expected = truth.get(id, empty)
        if id in lost and later.get(id) is not None:
            yield f"{kind} '{id}': the logs have lost something of it that the derived table still has. {_RESTORE}"
        elif id in lost:
            continue  # purged meanwhile
        elif expected.exists and not expected.purged and id not in later:
            yield f"{kind} '{id}' is in the logs but not shown. {_MEND}"
        elif id in later and not holds(later[id], expected):
            yield f"{kind} '{id}' differs from what the logs say. {_MEND}"


def _shown_of(entity: Entity | None) -> Entity | None:
    return entity if entity is not None and entity.exists else None


def _doubled(spec: TableSpec, keys: pa.ChunkedArray) -> Iterator[str]:
    counts = pc.value_counts(keys)
    for found in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist():
        yield f"{spec.kind} '{found['values']}' has {found['counts']} rows in {spec.name}. {_MEND}"


def _journals(files: Storage, report: Report) -> None:
    """What in segments is no record, also in those that a flush has set aside."""
    journal = journal_of(files)
    for piece in journal.pieces():
        data = journal.content(piece) or b""
        _segment_faults(report, f"Journal segment '{piece.segment}'", data, piece.start, partial(journal.may_grow, piece))
    for name in sorted(file.name for file in files.files(SET_ASIDE)) if SET_ASIDE in files.names() else []:
        if "-_journal-" in name:
            _segment_faults(report, f"'{SET_ASIDE}/{name}'", files.read(f"{SET_ASIDE}/{name}"))
            continue
        what = "what the logs had lost and is shown no more" if name.endswith("-lost.parquet") else "damaged"
        report.notes.append(f"'{SET_ASIDE}/{name}' is {what}: a rebuild set it aside. Remove it when nobody needs it.")


def _segment_faults(report: Report, where: str, data: bytes, start: int = 0, may_grow: Callable[[], bool] = lambda: False) -> None:
    for at, length in unreadable(data):
        at_end = at + length == len(data)
        if at_end and may_grow():
            continue  # being written
        text = f"{where} has {length:,} bytes from byte {start + at} on that are no whole record: "
        if at_end and is_torn_write(data, at):
            report.notes.append(text + "a write that was cut short at a page's end, as by a kill; such a call was not acknowledged.")
            continue
        report.problems.append(
            text + "a call that a crash or a full disk cut off and nobody was promised, or acknowledged calls whose bytes have changed. "
            "Restore the segment from a backup into '_journal', if there is one; then remove the file in '_set_aside', and this is settled."
        )


def _dangling(files: Storage, truth: Folding) -> Iterator[str]:
    live = {e.id for e in truth.values() if e.exists}
    for experiment in files.folders("artifacts"):
        for name in files.folders(f"artifacts/{experiment}"):
            folder = f"artifacts/{experiment}/{name}"
            ids = files.folders(folder) if name == "models" else [name]
            yield from (
                f"Artifacts of '{id}' lie in '{files.root}/{folder}', but no such run or model is known." for id in ids if id not in live
            )
