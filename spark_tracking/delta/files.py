"""Any Delta table as a list of Parquet files: which files a version has, and a commit of files that others wrote.

Scoring reads and writes the files in Spark's Python workers and needs no more of Delta than this. What a table's features
mean for such a reader or writer is the caller's to judge; the facts are in `Snapshot`. Format: the Delta transaction
protocol, https://github.com/delta-io/delta/blob/master/PROTOCOL.md.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction, RemoveAction

from spark_tracking.delta.commit_log import Commit
from spark_tracking.errors import InvalidState, NotFound

# All overwrites of partitions share this application transaction, so that of two at once one fails instead of both adding rows.
_OVERWRITE = "spark-tracking.overwrite"
_MISREAD = re.compile(r"[%#?\[\]\\^|\x00-\x1f]")


@dataclass(frozen=True)
class DataFile:
    """One live file of a table, its path relative to the root; `rows` is None where the log has no statistics.

    Attributes:
        partition: partition column -> typed value.
        logged: the path as the log has it, URL-encoded.
    """

    path: str
    size: int
    rows: int | None
    partition: Mapping[str, Any]
    logged: str = ""


@dataclass(frozen=True)
class Snapshot:
    """One version of a table.

    Attributes:
        features: names of the table features that readers and writers must know.
        protocol: minimum reader and writer version.
        column_settings: names of the settings that columns carry (such as `delta.generationExpression`).
        deleted_rows: whether files have deletion vectors.
    """

    uri: str
    version: int
    schema: pa.Schema
    partition_by: tuple[str, ...]
    configuration: Mapping[str, str]
    features: frozenset[str]
    protocol: tuple[int, int]
    column_settings: frozenset[str]
    files: tuple[DataFile, ...]
    deleted_rows: bool


@dataclass(frozen=True)
class NewFile:
    """A file that a worker wrote below the table's root, to be committed.

    Attributes:
        partition: partition column -> Delta's text for the value.
        stats: Delta's statistics as JSON text.
    """

    path: str
    size: int
    partition: Mapping[str, str | None]
    stats: str


@dataclass(frozen=True)
class Changes:
    """What happened between two versions.

    Attributes:
        added: path -> version of the files that brought new rows; a compaction's are not among them.
        removed: whether rows were deleted or rewritten (an update, a delete, a merge, an overwrite).
    """

    added: Mapping[str, int]
    removed: bool


def unreadable_path(uri: str) -> str | None:
    """Why delta-rs would read another folder than a local path names, or see a table there without its history; None if it would not.

    Example:
        >>> unreadable_path("/data/50%20off")
        "there is a '%' in '/data/50%20off', which delta-rs misreads"
    """
    found = None if "://" in uri else _MISREAD.search(uri)
    return f"there is a {found[0]!r} in '{uri}', which delta-rs misreads" if found else None


def _table(uri: str, version: int | None = None) -> DeltaTable:
    if reason := unreadable_path(uri):
        raise InvalidState(f"The table '{uri}' cannot be read without Spark: {reason}. Move it to another folder.")
    return DeltaTable(uri, version=version)


def snapshot(uri: str, version: int | None = None) -> Snapshot:
    """A version of a table, by default the newest.

    Raises:
        NotFound: there is no table or no such version.

    Example:
        >>> snapshot("/data/wine").files[0].rows
        6497
    """
    try:
        table = _table(uri, version)
    except TableNotFoundError as error:
        raise NotFound(f"There is no Delta table at '{uri}'.") from error
    protocol, metadata, schema = table.protocol(), table.metadata(), table.schema()
    features = frozenset([*(protocol.reader_features or ()), *(protocol.writer_features or ())])
    return Snapshot(
        uri=uri,
        version=table.version(),
        schema=pa.schema(schema.to_arrow()),
        partition_by=tuple(metadata.partition_columns),
        configuration=dict(metadata.configuration),
        features=features,
        protocol=(protocol.min_reader_version, protocol.min_writer_version),
        column_settings=_column_settings(json.loads(schema.to_json())),
        files=_files(table),
        deleted_rows="deletionVectors" in features and pa.table(table.deletion_vectors().read_all()).num_rows > 0,
    )


def _column_settings(kind: Any) -> frozenset[str]:
    """The settings of all columns, at any depth of a schema in Delta's JSON form."""
    found: set[str] = set()
    if isinstance(kind, dict):
        found.update(name for field in kind.get("fields", ()) for name in field["metadata"])
        inner = [*kind.get("fields", ()), *(kind[key] for key in ("type", "elementType", "keyType", "valueType") if key in kind)]
        found.update(*map(_column_settings, inner))
    return frozenset(found)


def _files(table: DeltaTable) -> tuple[DataFile, ...]:
    adds = pa.table(table.get_add_actions())
    columns = [name for name in ("path", "size_bytes", "num_records", "partition") if name in adds.column_names]
    return tuple(
        DataFile(unquote(row["path"]), row["size_bytes"], row.get("num_records"), row.get("partition") or {}, row["path"])
        for row in adds.select(columns).to_pylist()
    )


def changes(uri: str, after: int, upto: int) -> Changes:
    """What the commits after one version, up to and with another, did to a table's rows.

    Raises:
        InvalidState: a commit between them is no longer in the log.
    """
    log = DeltaStorageHandler(uri)  # asked in this thread alone: in Arrow's hands a Python file can abort the process at its end
    added: dict[str, int] = {}
    removed = False
    for version in range(after + 1, upto + 1):
        try:
            with log.open_input_stream(f"_delta_log/{version:020d}.json") as file:
                commit = Commit.parse(version, file.read())
        except FileNotFoundError as error:
            raise InvalidState(
                f"The log of '{uri}' no longer has version {version}, so what came after version {after} cannot be told. Score the "
                "whole table once (mode='overwrite', without since=)."
            ) from error
        added.update(dict.fromkeys(commit.added_rows, version))
        removed = removed or commit.removes_rows
    return Changes(added, removed)


def newest_version(uri: str | None) -> int | None:
    """A table's newest version; None if this client cannot read its log."""
    try:
        return None if uri is None else _table(uri).version()
    except Exception:  # a feature, a credential, the network: whoever asks has another way
        return None


def transaction_version(uri: str, app_id: str) -> int | None:
    """The version that an application last committed to a table; None if it never did, or there is no table."""
    try:
        return _table(uri).transaction_version(app_id)
    except TableNotFoundError:
        return None


def create(uri: str, schema: pa.Schema, partition_by: Sequence[str]) -> None:
    """Make an empty table; if it exists, nothing happens. Raises InvalidState: it cannot be made there."""
    try:
        DeltaTable.create(uri, schema=Schema.from_arrow(schema), partition_by=list(partition_by), mode="ignore")
    except (DeltaError, OSError) as error:
        raise InvalidState(f"The table '{uri}' cannot be made: {_cause(error)}") from error


def commit(
    at: Snapshot,
    files: Sequence[NewFile],
    *,
    mode: Literal["append", "overwrite", "overwrite_partitions"],
    metadata: Mapping[str, Any],
    app: tuple[str, int] | None = None,
) -> int | None:
    """Put files into a table, in one commit, on top of whatever others append meanwhile.

    Args:
        at: the version that was looked at; an overwrite removes what that version holds.
        files: what to add.
        mode: `overwrite_partitions` removes what is in the partitions that get files.
        metadata: goes into the commit.
        app: an application transaction: its name and version. If the table has it already, nothing is committed.

    Returns:
        The table's version; None if the application transaction was there already.

    Raises:
        InvalidState: another overwrite came first.
    """
    table = _table(at.uri)
    if app and _has_transaction(table, app):
        return None
    now = int(time.time() * 1000)
    actions: list[AddAction | RemoveAction] = [AddAction(f.path, f.size, f.partition, now, True, f.stats) for f in files]
    transactions = [Transaction(*app, now)] if app else []
    if mode == "overwrite_partitions":
        touched = {tuple(sorted(file.partition.items())) for file in files}
        actions += [_removal(file, now) for file in _files(table) if tuple(sorted(partition_texts(file.partition).items())) in touched]
        transactions.append(Transaction(_OVERWRITE, now, now))
    try:
        table.create_write_transaction(
            actions,
            "overwrite" if mode == "overwrite" else "append",
            Schema.from_arrow(at.schema),
            partition_by=list(at.partition_by),
            commit_properties=CommitProperties(custom_metadata=dict(metadata), app_transactions=transactions, max_commit_retries=100),
        )
    except CommitFailedError as error:
        if app and _has_transaction(_table(at.uri), app):
            return None
        raise InvalidState(f"Another job changed the same rows of '{at.uri}' at the same time, and nothing was written: {error}") from error
    except (DeltaError, OSError) as error:
        raise InvalidState(
            f"The commit to '{at.uri}' failed: {_cause(error)}. Run it again; what is in the table stays as it is."
        ) from error
    return _version_of(at.uri, metadata)


def _version_of(uri: str, metadata: Mapping[str, Any]) -> int:
    """The version of the commit with these very metadata; others may have come after it."""
    table = _table(uri)
    return int(next((commit["version"] for commit in table.history(100) if metadata.items() <= commit.items()), table.version()))


def _cause(error: Exception) -> str:
    """What an error of delta-rs says, in one line and without its source code's place."""
    return " ".join(str(error).split())[:500].rstrip(".")


def _has_transaction(table: DeltaTable, app: tuple[str, int]) -> bool:
    done = table.transaction_version(app[0])
    return done is not None and done >= app[1]


def _removal(file: DataFile, now: int) -> RemoveAction:
    return RemoveAction(
        path=file.logged,
        data_change=True,
        deletion_timestamp=now,
        partition_values=partition_texts(file.partition),
        size=file.size,
    )


def partition_texts(values: Mapping[str, Any]) -> dict[str, str | None]:
    """Partition values (text, numbers, booleans, dates) as Delta's log writes them."""

    def text(value: Any) -> str | None:
        if value is None or value == "":
            return None
        return str(value).lower() if isinstance(value, bool) else str(value)

    return {name: text(value) for name, value in values.items()}


def history(uri: str, limit: int | None = None) -> list[dict[str, Any]]:
    """A table's commits, newest first. Raises NotFound: there is no table."""
    try:
        return _table(uri).history(limit)
    except TableNotFoundError as error:
        raise NotFound(f"There is no Delta table at '{uri}'.") from error
