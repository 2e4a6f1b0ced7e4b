"""The file-native path in the worker: read Parquet, predict, write Parquet. No row crosses the JVM, no Delta library is needed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem, FileType

from spark_tracking.errors import InvalidState
from spark_tracking.scoring.file_stats import FloatBounds, partition_text, statistics
from spark_tracking.scoring.predict import Plan, Predictor
from spark_tracking.spark.worker import settle

_BATCH_BYTES = 16 << 20  # of input, per call of the model
_BATCH_ROWS = 128 * 1024
_GROUP_BYTES = 64 << 20  # of output, per Parquet row group
_NO_ROOM = 64 << 10  # with less left on a disk, a write failed for that


@dataclass(frozen=True)
class Piece:
    """A share of a source file.

    Attributes:
        path: relative to the source's root.
        partition: partition column -> typed value.
        start, stop: which of the file's rows, as fractions of their number.
    """

    path: str
    partition: Mapping[str, Any]
    start: float = 0.0
    stop: float = 1.0


@dataclass(frozen=True)
class FilePlan:
    """What file workers need.

    Attributes:
        plan: how to score.
        source, target: URI or path of the tables' roots.
        folder: below the target's root, where this job's files go.
        columns: Arrow schema of the source columns that are read or are partition values.
        inputs: names of the model's inputs.
        keep: names of the source columns that are written.
        output: Arrow schema of the rows written, partition columns included.
        partition_by: the target's partition columns.
        error_column: where errors go, or None.
        constants: further columns with one value.
    """

    plan: Plan
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


@dataclass(frozen=True)
class Written:
    """One file that a worker wrote: path below the target's root, counts, Delta's partition texts and statistics."""

    path: str
    size: int
    rows: int
    failed: int
    partition: str
    stats: str


WRITTEN = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("rows", pa.int64()),
        ("failed", pa.int64()),
        ("partition", pa.string()),
        ("stats", pa.string()),
    ]
)


def root(uri: str) -> tuple[FileSystem, str]:
    """The file system of a table's root, and the root's path in it; credentials come from the environment."""
    if "://" not in uri and not uri.startswith("file:"):
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), uri.rstrip("/")
    for alias, scheme in (("s3a://", "s3://"), ("s3n://", "s3://")):
        uri = uri.replace(alias, scheme, 1) if uri.startswith(alias) else uri
    files, path = FileSystem.from_uri(uri)
    return files, path.rstrip("/")


def sees_log(uri: str) -> bool:
    """Whether this process can read a table's folder, by the log that is in it."""
    try:
        files, base = root(uri)
        return bool(files.get_file_info(f"{base}/_delta_log").type == FileType.Directory)
    except OSError:
        return False


def run_tasks(plan: FilePlan, tasks: list[tuple[Piece, ...]], batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The body of the Spark job: each row of `batches` is the number of a task; the answer is a row per file written."""
    for batch in batches:
        for number in batch.column(0).to_pylist():
            with _writing(plan.target):
                written = [asdict(file) for file in run_task(plan, tasks[number])]
            yield from pa.Table.from_pylist(written, schema=WRITTEN).to_batches()
    settle()


@contextmanager
def _writing(target: str) -> Iterator[None]:
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


def run_task(plan: FilePlan, pieces: tuple[Piece, ...]) -> list[Written]:
    """Score some pieces of source files into new files of the target, one per partition."""
    predictor = Predictor(plan.plan)
    files, base = root(plan.target)
    output = _Output(plan, files, base)
    for tables in _calls(table for piece in pieces for table in read(plan, piece)):
        scored, at = _scored(plan, predictor, pa.concat_tables(tables)), 0
        if not plan.partition_by:
            output.add(scored)
            continue
        for table in tables:  # most are of one partition
            output.add(scored.slice(at, table.num_rows))
            at += table.num_rows
    return output.close()


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


def read(plan: FilePlan, piece: Piece) -> Iterator[pa.Table]:
    """A piece's rows with the columns of `plan.columns`: those that the file lacks are null, partition columns constant."""
    files, base = root(plan.source)
    with (
        files.open_input_file(f"{base}/{piece.path}") as handle,
        pq.ParquetFile(handle, coerce_int96_timestamp_unit="us", pre_buffer=files.type_name != "local") as file,
    ):
        _check_calendar(file, piece.path)
        total = file.metadata.num_rows
        low, high = int(total * piece.start), int(total * piece.stop)
        groups, first = _row_groups(file.metadata, low, high)
        if not groups:
            return
        names = set(file.schema_arrow.names)
        there = [name for name in plan.columns.names if name in names and name not in piece.partition]
        size = _batch_rows(file.metadata, groups, len(there) / max(1, len(names)))
        at = first
        for batch in file.iter_batches(batch_size=size, row_groups=groups, columns=there, use_threads=False):
            start, stop = max(low - at, 0), min(high - at, batch.num_rows)
            at += batch.num_rows
            if start < stop:
                yield _columns(plan, piece, batch.slice(start, stop - start))
            if at >= high:  # the rest of the row group is another piece's
                return


def _check_calendar(file: pq.ParquetFile, path: str) -> None:
    """Spark 2 wrote old dates by another calendar and says so in the file; only Spark knows how to read them."""
    notes = file.metadata.metadata or {}
    if b"org.apache.spark.legacyDateTime" in notes or b"org.apache.spark.legacyINT96" in notes:
        raise InvalidState(f"The source file '{path}' was written with Spark 2's calendar. Pass strategy='udf'.")


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


def _columns(plan: FilePlan, piece: Piece, batch: pa.RecordBatch) -> pa.Table:
    arrays = []
    for field in plan.columns:
        if field.name in piece.partition:
            value = piece.partition[field.name]
            arrays.append(pa.repeat(pa.scalar(value, field.type), batch.num_rows))
        elif (place := batch.schema.get_field_index(field.name)) >= 0:
            column = batch.column(place)
            arrays.append(column if column.type == field.type else column.cast(field.type))
        else:
            arrays.append(pa.nulls(batch.num_rows, field.type))
    return pa.Table.from_arrays(arrays, schema=plan.columns)


def _scored(plan: FilePlan, predictor: Predictor, table: pa.Table) -> pa.Table:
    inputs = table.select(list(plan.inputs))
    for place, field in enumerate(inputs.schema):
        if pa.types.is_timestamp(field.type) and field.type.tz:  # the model sees local times, as in a UDF
            inputs = inputs.set_column(place, field.name, inputs.column(place).cast(pa.timestamp("us", plan.plan.zone)))
    answer = predictor.score(inputs)
    columns = {name: table[name] for name in plan.keep}
    if plan.error_column is None:
        columns[plan.prediction] = answer
    else:
        columns[plan.prediction], columns[plan.error_column] = answer.field("prediction"), answer.field("error")
    for name, value in plan.constants.items():
        columns[name] = pa.repeat(pa.scalar(value, plan.output.field(name).type), table.num_rows)
    return pa.Table.from_arrays([columns[field.name] for field in plan.output], schema=plan.output)


class _Output:
    """The files of one task: one per combination of partition values, each collecting rows until a row group is full."""

    def __init__(self, plan: FilePlan, files: FileSystem, base: str) -> None:
        self._plan, self._files, self._base = plan, files, base
        self._data = [name for name in plan.output.names if name not in plan.partition_by]
        self._open: dict[tuple[Any, ...], _File] = {}

    def add(self, table: pa.Table) -> None:
        for values, rows in self._by_partition(table):
            if values not in self._open:
                self._open[values] = _File(self._plan, self._files, self._base, values, self._plan.output, self._data)
            self._open[values].add(rows.select(self._data))

    def _by_partition(self, table: pa.Table) -> Iterator[tuple[tuple[Any, ...], pa.Table]]:
        names = list(self._plan.partition_by)
        if not names:
            yield (), table
            return
        groups = table.select(names).group_by(names, use_threads=False).aggregate([])
        for group in groups.to_pylist():
            values = tuple(group[name] for name in names)
            mask = None
            for name, value in zip(names, values, strict=True) if groups.num_rows > 1 else ():
                same = (
                    pc.is_null(table[name])
                    if value is None
                    else pc.fill_null(pc.equal(table[name], pa.scalar(value, table[name].type)), False)
                )
                mask = same if mask is None else pc.and_(mask, same)
            yield values, table if mask is None else table.filter(mask)

    def close(self) -> list[Written]:
        return [file.close() for file in self._open.values()]


class _File:
    def __init__(self, plan: FilePlan, files: FileSystem, base: str, values: tuple[Any, ...], schema: pa.Schema, data: list[str]) -> None:
        self._plan, self._files, self._base = plan, files, base
        self._partition = {name: partition_text(value) for name, value in zip(plan.partition_by, values, strict=True)}
        self._schema = pa.schema([schema.field(name) for name in data])
        self._path = f"{plan.folder}/part-{uuid.uuid4().hex}.snappy.parquet"
        files.create_dir(f"{base}/{plan.folder}", recursive=True)
        self._floats = FloatBounds(self._schema)
        others = [field.name for field in self._schema if field.name not in self._floats.names]
        self._footers: list[pq.FileMetaData] = []
        self._sink = files.open_output_stream(f"{base}/{self._path}")
        self._writer = pq.ParquetWriter(
            self._sink,
            self._schema,
            compression="snappy",
            use_dictionary=others,
            write_statistics=others,
            store_schema=False,
            metadata_collector=self._footers,
        )
        self._pending: list[pa.Table] = []
        self._pending_bytes = self._failed = 0

    def add(self, table: pa.Table) -> None:
        self._pending.append(table)
        if self._plan.error_column:
            column = table[self._plan.error_column]
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

    def close(self) -> Written:
        self._flush()
        self._writer.close()
        self._sink.close()
        footer = self._footers[0]
        return Written(
            path=self._path,
            size=self._files.get_file_info(f"{self._base}/{self._path}").size,
            rows=footer.num_rows,
            failed=self._failed,
            partition=json.dumps(self._partition),
            stats=json.dumps(statistics(footer, self._schema, self._floats)),
        )
