"""The strategy `files` in the worker: read Parquet, predict, write Parquet. No row crosses the JVM."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem, FileType, LocalFileSystem, SubTreeFileSystem

from spark_tracking.errors import InvalidState
from spark_tracking.scoring.worker.model_call import ModelCall
from spark_tracking.scoring.worker.statistics import FloatBounds, partition_text, statistics
from spark_tracking.spark.worker import settle

_BATCH_BYTES = 16 << 20  # of input, per call of the model
_BATCH_ROWS = 128 * 1024
_GROUP_BYTES = 64 << 20  # of output, per Parquet row group
_NO_ROOM = 64 << 10  # with less left on a disk, a write failed for that

WRITTEN = pa.schema(
    [("path", "string"), ("size", "int64"), ("rows", "int64"), ("failed", "int64"), ("partition", "string"), ("stats", "string")]
)
"""What a worker says of each file that it wrote: path below the target's root, counts, Delta's partition texts and statistics."""


@dataclass(frozen=True)
class FileSlice:
    """A share of a source file: which of its rows, as fractions of their number. Its path is relative to the source's root."""

    path: str
    partition: Mapping[str, Any]  # column -> typed value
    start: float = 0.0
    stop: float = 1.0


@dataclass(frozen=True)
class FilePlan:
    """What file workers need.

    Attributes:
        source, target: URI or path of the tables' roots.
        folder: below the target's root, where this job's files go.
        columns: Arrow schema of the source columns that are read or are partition values.
        inputs, keep: names of the model's inputs, and of the source columns that are written.
        output: Arrow schema of the rows written, partition columns included.
        partition_by: the target's partition columns.
        prediction, error_column: where predictions and errors go; None for errors that fail.
        constants: further columns with one value.
    """

    call: ModelCall
    source: str
    target: str
    folder: str
    columns: pa.Schema
    inputs: tuple[str, ...]
    keep: tuple[str, ...]
    output: pa.Schema
    partition_by: tuple[str, ...]
    prediction: str
    error_column: str | None
    constants: Mapping[str, Any]


def root(uri: str) -> SubTreeFileSystem:
    """A table's folder as a file system; credentials come from the environment."""
    if "://" not in uri and not uri.startswith("file:"):
        return SubTreeFileSystem(uri.rstrip("/"), LocalFileSystem())
    for alias in ("s3a://", "s3n://"):
        uri = uri.replace(alias, "s3://", 1) if uri.startswith(alias) else uri
    files, path = FileSystem.from_uri(uri)
    return SubTreeFileSystem(path.rstrip("/"), files)


def is_local(files: SubTreeFileSystem) -> bool:
    """Whether a table's folder is one of this machine's."""
    return bool(files.base_fs.type_name == "local")


def sees_log(uri: str) -> bool:
    """Whether this process can read a table's folder, by the log that is in it."""
    try:
        return bool(root(uri).get_file_info("_delta_log").type == FileType.Directory)
    except OSError:
        return False


def score_tasks(plan: FilePlan, tasks: list[tuple[FileSlice, ...]], batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The body of the Spark job: each row of `batches` is the number of a task; the answer is a row of `WRITTEN` per file."""
    for batch in batches:
        for number in batch.column(0).to_pylist():
            with _told(plan.target):
                written = _score(plan, tasks[number])
            yield from pa.Table.from_pylist(written, schema=WRITTEN).to_batches()
    settle()


@contextmanager
def _told(target: str) -> Iterator[None]:
    """What keeps a worker from reading or writing files, in a sentence."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else " ".join(str(error).split())[:500]
        if isinstance(error, RuntimeError) and "file metadata" not in why:  # which is what pyarrow says of a file that it could not end
            raise
        if "://" not in target and shutil.disk_usage(target).free < _NO_ROOM:
            why = os.strerror(errno.ENOSPC)
        raise InvalidState(f"Scoring into '{target}' failed: {why}. Nothing was committed. Mend the cause and run it again.") from error


def _score(plan: FilePlan, task: tuple[FileSlice, ...]) -> list[dict[str, Any]]:
    """Score slices of source files into new files of the target, one per combination of partition values."""
    target = root(plan.target)
    written: dict[tuple[Any, ...], _WrittenFile] = {}
    for tables in _calls(table for part in task for table in _read(plan, part)):
        scored, at = _scored(plan, pa.concat_tables(tables)), 0
        for size in [table.num_rows for table in tables] if plan.partition_by else [scored.num_rows]:  # most are of one partition
            for values, rows in _by_partition(plan, scored.slice(at, size)):
                if values not in written:
                    written[values] = _WrittenFile(plan, target, values)
                written[values].add(rows)
            at += size
    return [file.close() for file in written.values()]


def _calls(tables: Iterator[pa.Table]) -> Iterator[list[pa.Table]]:
    """Small tables together, since a call of a model costs milliseconds however few the rows."""
    call: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        if call and (rows + table.num_rows > _BATCH_ROWS or size + table.nbytes > _BATCH_BYTES):
            yield call
            call, rows, size = [], 0, 0
        call.append(table)
        rows, size = rows + table.num_rows, size + table.nbytes
    if call:
        yield call


def _read(plan: FilePlan, part: FileSlice) -> Iterator[pa.Table]:
    """A slice's rows with the columns of `plan.columns`: those that the file lacks are null, partition columns constant."""
    files = root(plan.source)
    with (
        files.open_input_file(part.path) as handle,
        pq.ParquetFile(handle, coerce_int96_timestamp_unit="us", pre_buffer=not is_local(files)) as file,
    ):
        notes = file.metadata.metadata or {}
        if b"org.apache.spark.legacyDateTime" in notes or b"org.apache.spark.legacyINT96" in notes:  # only Spark knows how to read them
            raise InvalidState(f"The source file '{part.path}' was written with Spark 2's calendar. Pass strategy='udf'.")
        total = file.metadata.num_rows
        low, high = int(total * part.start), int(total * part.stop)
        groups, at = _row_groups(file.metadata, low, high)
        if not groups:
            return
        names = set(file.schema_arrow.names)
        there = [name for name in plan.columns.names if name in names and name not in part.partition]
        size = _batch_rows(file.metadata, groups, len(there) / max(1, len(names)))
        for batch in file.iter_batches(batch_size=size, row_groups=groups, columns=there, use_threads=False):
            start, stop = max(low - at, 0), min(high - at, batch.num_rows)
            at += batch.num_rows
            if start < stop:
                yield _columns(plan, part, batch.slice(start, stop - start))
            if at >= high:  # the rest of the row group is another slice's
                return


def _row_groups(metadata: pq.FileMetaData, low: int, high: int) -> tuple[list[int], int]:
    """The row groups that hold rows low..high, and the number of the first row in them."""
    groups: list[int] = []
    first = at = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if at < high and at + rows > low and rows:
            first = at if not groups else first
            groups.append(group)
        at += rows
    return groups, first


def _batch_rows(metadata: pq.FileMetaData, groups: list[int], share: float) -> int:
    rows = sum(metadata.row_group(group).num_rows for group in groups)
    size = sum(metadata.row_group(group).total_byte_size for group in groups) * share
    return max(1024, min(_BATCH_ROWS, int(_BATCH_BYTES / max(1.0, size / rows))))


def _columns(plan: FilePlan, part: FileSlice, batch: pa.RecordBatch) -> pa.Table:
    arrays = []
    for field in plan.columns:
        if field.name in part.partition:
            arrays.append(pa.repeat(pa.scalar(part.partition[field.name], field.type), batch.num_rows))
        elif (place := batch.schema.get_field_index(field.name)) >= 0:
            column = batch.column(place)
            arrays.append(column if column.type == field.type else column.cast(field.type))
        else:
            arrays.append(pa.nulls(batch.num_rows, field.type))
    return pa.Table.from_arrays(arrays, schema=plan.columns)


def _scored(plan: FilePlan, table: pa.Table) -> pa.Table:
    inputs = table.select(list(plan.inputs))
    for place, field in enumerate(inputs.schema):
        if pa.types.is_timestamp(field.type) and field.type.tz:  # the model sees local times, as in a UDF
            inputs = inputs.set_column(place, field.name, inputs.column(place).cast(pa.timestamp("us", plan.call.zone)))
    answer = plan.call.score(inputs)
    columns = {name: table[name] for name in plan.keep}
    if plan.error_column is None:
        columns[plan.prediction] = answer
    else:
        columns[plan.prediction], columns[plan.error_column] = answer.field("prediction"), answer.field("error")
    for name, value in plan.constants.items():
        columns[name] = pa.repeat(pa.scalar(value, plan.output.field(name).type), table.num_rows)
    return pa.Table.from_arrays([columns[field.name] for field in plan.output], schema=plan.output)


def _by_partition(plan: FilePlan, table: pa.Table) -> Iterator[tuple[tuple[Any, ...], pa.Table]]:
    names = list(plan.partition_by)
    if not names:
        yield (), table
        return
    groups = table.select(names).group_by(names, use_threads=False).aggregate([])
    for group in groups.to_pylist():
        mask = None
        for name, value in group.items() if groups.num_rows > 1 else ():
            column = table[name]
            same = pc.is_null(column) if value is None else pc.fill_null(pc.equal(column, pa.scalar(value, column.type)), False)
            mask = same if mask is None else pc.and_(mask, same)
        yield tuple(group[name] for name in names), table if mask is None else table.filter(mask)


class _WrittenFile:
    """A file of the target that collects rows until a row group is full."""

    def __init__(self, plan: FilePlan, files: SubTreeFileSystem, values: tuple[Any, ...]) -> None:
        self._files, self._error_column = files, plan.error_column
        self._partition = {name: partition_text(value) for name, value in zip(plan.partition_by, values, strict=True)}
        self._schema = pa.schema([field for field in plan.output if field.name not in self._partition])
        self._path = f"{plan.folder}/part-{uuid.uuid4().hex}.snappy.parquet"
        self._floats = FloatBounds(self._schema)
        self._footers: list[pq.FileMetaData] = []
        self._pending: list[pa.Table] = []
        self._pending_bytes = self._failed = 0
        files.create_dir(plan.folder, recursive=True)
        self._sink = files.open_output_stream(self._path)
        others = [field.name for field in self._schema if field.name not in self._floats.names]
        self._writer = pq.ParquetWriter(
            self._sink,
            self._schema,
            compression="snappy",
            use_dictionary=others,
            write_statistics=others,
            store_schema=False,
            metadata_collector=self._footers,
        )

    def add(self, table: pa.Table) -> None:
        table = table.select(self._schema.names)
        self._pending.append(table)
        if self._error_column:
            column = table[self._error_column]
            self._failed += len(column) - column.null_count
        self._floats.add(table)
        self._pending_bytes += table.nbytes
        if self._pending_bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            table = pa.concat_tables(self._pending)
            self._writer.write_table(table, row_group_size=max(1, table.num_rows))
            self._pending, self._pending_bytes = [], 0

    def close(self) -> dict[str, Any]:
        """End the file, and what `WRITTEN` says of it."""
        self._flush()
        self._writer.close()
        self._sink.close()
        footer = self._footers[0]
        return {
            "path": self._path,
            "size": self._files.get_file_info(self._path).size,
            "rows": footer.num_rows,
            "failed": self._failed,
            "partition": json.dumps(self._partition),
            "stats": json.dumps(statistics(footer, self._schema, self._floats)),
        }
