"""The files of one Delta table held against what its log says of them: versions in sequence, every file there, read and counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from posixpath import basename
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spark_tracking.lake.columns import record_ids_of, wall_time
from spark_tracking.lake.faults import explaining, first_line, is_foreign
from spark_tracking.lake.log import Table
from spark_tracking.lake.storage import Storage
from spark_tracking.lake.tables import METRICS_LOG, TableSpec


@dataclass(frozen=True)
class Commits:
    """The Delta log of a table as its folder has it.

    Attributes:
        faults: by version, what is wrong with its commit; versions before the checkpoint that stands for them left out.
        checkpoints: names of checkpoint files that cannot be read, with the reason.
        newest: the newest version; -1 where nothing is left.
    """

    faults: dict[int, str]
    checkpoints: dict[str, str]
    newest: int


def commits(files: Storage, spec: TableSpec) -> Commits:
    """Look at a table's log, file by file."""
    folder = f"{spec.name}/_delta_log"
    try:
        names = sorted(file.name for file in files.files(folder))
    except OSError:
        names = []
    versions = {int(name[:20]) for name in names if name.endswith(".json") and name[:20].isdigit()}
    bad, start = {}, -1
    for name in names:
        if ".checkpoint" in name and name.endswith(".parquet") and name[:20].isdigit():
            try:
                pq.read_table(pa.BufferReader(files.read(f"{folder}/{name}")))
                start = max(start, int(name[:20]))
            except Exception as error:  # Thrift's and Arrow's have no common class
                bad[name] = first_line(str(error))
    newest = max(versions, default=start)
    faults = {version: "is missing" for version in range(start + 1, newest) if version not in versions}
    for version in sorted(v for v in versions if v > start):
        try:
            told = commit_fault(files.read(f"{folder}/{version:020d}.json"))
        except FileNotFoundError:
            continue  # cleaned away meanwhile: a newer checkpoint stands for it
        if told:
            faults[version] = told
    return Commits(faults, bad, newest)


def commit_fault(text: bytes) -> str:
    """What is wrong with a commit; '' for nothing."""
    lines = text.splitlines()
    try:
        actions = [orjson.loads(line) for line in lines]
    except orjson.JSONDecodeError:
        return "is damaged: it is not JSON"
    if not lines or not all(isinstance(action, dict) for action in actions):
        return "is empty" if not lines else "is damaged: it is no list of actions"
    information: dict[str, Any] = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
    metrics = information.get("operationMetrics") or {}
    told, added = metrics.get("num_added_files"), sum("add" in action for action in actions)
    is_append = (information.get("operationParameters") or {}).get(
        "mode"
    ) == "Append"  # delta-rs miscounts those of an overwrite by nothing
    if is_append and metrics.get("num_added_rows") and told is not None and int(told) != added:
        return f"is damaged: it adds {added} files, and says {told}"
    return ""


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


def strays(files: Storage, table: Table, live: set[str]) -> list[pa.Table]:
    """The rows of Parquet files that no version of the table is known to have named, in the table's schema.

    A commit that is lost leaves its file behind; so does a writer that was killed before its commit.
    """
    there = [file.name for file in files.files(table.spec.name) if file.name.endswith(".parquet") and file.name not in live]
    named = _named(files, table) if there else set()
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


def _named(files: Storage, table: Table) -> set[str]:
    """The files that commits and checkpoints name, live or removed."""
    folder, named = f"{table.spec.name}/_delta_log", set()
    for file in list(files.files(folder)):
        try:
            text = files.read(f"{folder}/{file.name}")
            if file.name.endswith(".json") and file.name[:20].isdigit():
                for line in text.splitlines():
                    action = orjson.loads(line)
                    named |= {basename(action[kind]["path"]) for kind in ("add", "remove") if kind in action}
            elif ".checkpoint" in file.name and file.name.endswith(".parquet"):
                stored = pq.read_table(pa.BufferReader(text), columns=["add", "remove"])
                for kind in ("add", "remove"):
                    named |= {basename(row["path"]) for row in stored[kind].to_pylist() if row and row.get("path")}
        except (FileNotFoundError, ValueError, TypeError, pa.ArrowException, OSError):
            continue  # cleaned away, or damaged, which `commits` tells
    return named


def opened(files: Storage, spec: TableSpec, make: type[Table]) -> Table:
    """A handle on the table.

    Raises:
        LakeError: it cannot be opened.
    """
    with explaining(files.root):
        return make(files.root, spec)
