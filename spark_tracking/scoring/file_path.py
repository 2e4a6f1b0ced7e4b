"""The file-native path on the driver: decide whether it is allowed, deal out the files, commit what the workers wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from spark_tracking.errors import InvalidState
from spark_tracking.lake import delta_files
from spark_tracking.lake.delta_files import DataFile, NewFile, Snapshot
from spark_tracking.scoring import checks
from spark_tracking.scoring.attempt import attempt
from spark_tracking.scoring.file_worker import WRITTEN, FilePlan, Piece, root, run_tasks, sees_log
from spark_tracking.scoring.progress import progress
from spark_tracking.scoring.ship import shares_files
from spark_tracking.scoring.source import default_parallelism
from spark_tracking.scoring.types import arrow_type
from spark_tracking.scoring.work import output_schema

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.types import DataType

    from spark_tracking.scoring.source import Place
    from spark_tracking.scoring.work import Work

_ROUNDS = 2  # tasks per slot at least, so that slots end together and progress shows, yet few files are written
_TASK_BYTES = 96 << 20  # of a larger source
_WHOLE_BYTES = 1 << 20  # to share out a smaller file gains nothing
_UNEVEN = 0.1  # by which a task may differ from the others so that a file stays whole


@dataclass(frozen=True)
class FileWork:
    """The tables of a job for which the file-native path is allowed.

    Attributes:
        source: the source's snapshot.
        target: the target's, or None where it does not exist yet.
        files: the source files to score, after `where` and `since`.
        output: Arrow schema of what is written.
        location: the target's root.
        partition_by: its partition columns.
    """

    source: Snapshot
    target: Snapshot | None
    files: tuple[DataFile, ...]
    output: pa.Schema
    location: str
    partition_by: tuple[str, ...]


def examine(spark: SparkSession, work: Work) -> FileWork | str:
    """Both tables' snapshots and the files to score, or the reason why this job is not for the file-native path."""
    if reason := checks.unsuitable(work):
        return reason
    assert work.source.place is not None
    for path in (work.source.place.location, work.target.path):
        if path and (reason := delta_files.unreadable_path(path)):
            return reason
    source = _look(work.source.place.location, work.source.version)
    target = _look(work.target.location) if work.target.exists else None
    for found in (source, target):
        if isinstance(found, str):
            return found
    source, target = cast(Snapshot, source), cast("Snapshot | None", target)
    files = _files(spark, work, source)
    if isinstance(files, str):
        return files
    try:
        output = pa.schema([(field.name, arrow_type(field.dataType)) for field in output_schema(work)])
    except TypeError as error:
        return f"a column's type has no Arrow form ({error})"
    if reason := checks.unreadable(source) or _unwritable(work, target, output) or _unreachable(spark, source.uri, work.target):
        return reason
    partition_by = target.partition_by if target else work.partition_by
    return FileWork(source, target, files, output, work.target.path, partition_by)


def _unwritable(work: Work, target: Snapshot | None, output: pa.Schema) -> str | None:
    if target is None:
        if name := checks.unusual_name(output.names):
            return f"a new table with a column '{name}' is Spark's to make"
        return None if work.target.is_path else "a new table of the catalog is Spark's to make"
    return checks.unwritable(target, work.mode) or checks.different(target, output)


def _look(location: str | None, version: int | None = None) -> Snapshot | str:
    if location is None:
        return "the catalog does not say where a table's files are"
    try:
        root(location)
        return delta_files.snapshot(location, version)
    except Exception as error:  # whatever keeps this client from the log: a feature, a credential, the network
        return f"this client cannot read the log of '{location}' ({str(error).splitlines()[0]})"


def _unreachable(spark: SparkSession, source: str, target: Place) -> str | None:
    """Workers are certain to see what this process sees only where they are its children; elsewhere ask them."""
    if shares_files(spark):
        return None
    if not target.exists and (target.location is None or "://" not in target.location):
        return "a new table is Spark's to make where workers may not share this machine's folders"
    folders = [source, *([target.location] if target.exists and target.location else [])]

    def blind(batches: Iterator[Any]) -> Iterator[Any]:
        for _ in batches:
            yield pa.RecordBatch.from_pydict({"folder": pa.array([name for name in folders if not sees_log(name)], pa.string())})

    answers = spark.range(0, 16, 1, 8).mapInArrow(blind, "folder string").distinct().collect()
    return f"workers cannot read '{answers[0][0]}'" if answers else None


def _files(spark: SparkSession, work: Work, source: Snapshot) -> tuple[DataFile, ...] | str:
    """The files that `since` and `where` leave, or why Spark must look into the rows."""
    files = source.files
    if work.added is not None:
        live = {file.path for file in files}
        if not set(work.added) <= live:
            return "files that the source gained were rewritten since (a compaction)"
        files = tuple(file for file in files if file.path in work.added)
    if work.where is None or not files:
        return files
    if not source.partition_by:
        return "where= looks into the source's rows"
    return _where(spark, work, source, files)


def _where(spark: SparkSession, work: Work, source: Snapshot, files: Sequence[DataFile]) -> tuple[DataFile, ...] | str:
    """Spark itself judges the condition, on the partition values alone."""
    from pyspark.errors import AnalysisException
    from pyspark.sql.types import LongType, StructField, StructType

    assert work.where is not None
    schema = StructType([*(work.source.df.schema[name] for name in source.partition_by), StructField("__file", LongType())])
    rows = [(*(file.partition[name] for name in source.partition_by), number) for number, file in enumerate(files)]
    try:
        kept = spark.createDataFrame(rows, schema).where(work.where).collect()
    except AnalysisException:
        return "where= looks into the source's rows"
    return tuple(files[row["__file"]] for row in kept)


def run(spark: SparkSession, work: Work, found: FileWork, *, show: bool | None) -> dict[str, Any]:
    """Score the files and commit them.

    Returns:
        `version` of the target after the commit (None if another run of this job committed first), `rows` and `failed`.
    """
    with attempt(found.location, work.token, found.target.version if found.target else 0) as running:
        written = _score(spark, work, found, running.folder, show)
        running.claim()
        if found.target is None:  # only now, so that a job that fails leaves no empty table
            delta_files.create(found.location, found.output, found.partition_by)
        at = delta_files.snapshot(found.location)
        if reason := checks.unwritable(at, work.mode) or checks.different(at, found.output):
            raise InvalidState(f"The target '{work.target.text}' was changed while the job ran: now {reason}. Run it again.")
        rows, failed = sum(file["rows"] for file in written), sum(file["failed"] for file in written)
        new = [NewFile(file["path"], file["size"], json.loads(file["partition"]), file["stats"]) for file in written if file["rows"]]
        version = delta_files.commit(
            at,
            new,
            mode=cast(Any, work.mode),
            metadata={"userMetadata": work.user_metadata("files", rows=rows, failed=failed)},
            app=(work.app_id, work.app_version) if work.app_id else None,
        )
        with suppress(OSError):  # the work is done; what cannot be deleted is VACUUM's
            running.drop_all_but([file.path for file in new] if version is not None else ())
    return {"version": version, "rows": rows, "failed": failed}


def _score(spark: SparkSession, work: Work, found: FileWork, folder: str, show: bool | None) -> list[dict[str, Any]]:
    plan = _plan(work, found, folder)
    tasks = deal(found.files, default_parallelism(spark))
    if not tasks:
        return []

    def run_here(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return run_tasks(plan, tasks, batches)

    from pyspark.sql.pandas.types import from_arrow_schema

    job = spark.range(0, len(tasks), 1, len(tasks)).mapInArrow(run_here, from_arrow_schema(WRITTEN))
    rows = None if any(file.rows is None for file in found.files) else sum(file.rows or 0 for file in found.files)
    with progress(spark, f"scoring {len(found.files)} files", rows=rows, show=show):
        return [row.asDict() for row in job.collect()]


def _plan(work: Work, found: FileWork, folder: str) -> FilePlan:
    assert work.plan is not None
    schema = work.source.df.schema
    kinds: Mapping[str, DataType] = {field.name: field.dataType for field in schema}
    needed = list(dict.fromkeys([*work.inputs, *work.keep]))
    return FilePlan(
        plan=work.plan,
        source=found.source.uri,
        target=found.location,
        folder=folder,
        columns=pa.schema([(name, arrow_type(kinds[name])) for name in needed]),
        inputs=work.inputs,
        keep=work.keep,
        output=found.output,
        partition_by=found.partition_by,
        prediction=work.prediction,
        error_column=work.error_column if work.reports else None,
        constants={"model_version": work.stamp(), "scored_at": work.started} if work.model_columns else {},
    )


def deal(files: Sequence[DataFile], slots: int) -> list[tuple[Piece, ...]]:
    """Share files out among tasks of about the same size, whole ones where that is even; a task's are of as few partitions as may be.

    Args:
        files: what to read.
        slots: tasks that run at once.

    Example:
        >>> [len(task) for task in deal(thousand_small_files, slots=2)]
        [250, 250, 250, 250]
    """
    total = sum(file.size for file in files)
    rounds = max(1 if len(files) <= slots else _ROUNDS, round(total / slots / _TASK_BYTES))
    count = min(slots * rounds, max(len(files), total // _WHOLE_BYTES))
    share = total / max(1, count)
    tasks: list[list[Piece]] = [[]]
    begin, cut = 0, 1
    for file in sorted(files, key=lambda file: (str(sorted(file.partition.items(), key=str)), file.path)):
        edges = [0.0]
        while cut < count and share * cut <= begin + file.size:
            edges.append(_cut(share * cut - begin, file.size, share))
            cut += 1
        for number, (start, stop) in enumerate(pairwise([*edges, 1.0])):
            if number:
                tasks.append([])
            if start < stop:
                tasks[-1].append(Piece(file.path, file.partition, start, stop))
        begin += file.size
    return [tuple(task) for task in tasks if task]


def _cut(at: float, size: int, share: float) -> float:
    """Where to cut a file, as a fraction: at an end of it if one is near, since who begins within a row group decodes it in vain."""
    near = max(share * _UNEVEN, size / 2 if size <= _WHOLE_BYTES else 0)
    if min(at, size - at) > near:
        return at / size
    return 0.0 if at < size - at else 1.0
