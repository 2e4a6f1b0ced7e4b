"""The strategy `files`: workers read and write the tables' files themselves, and the driver commits what they wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pyarrow as pa
from pyspark.errors import AnalysisException
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import LongType, StructField, StructType

from spark_tracking.delta import files as delta_files
from spark_tracking.delta.files import DataFile, NewFile, Snapshot
from spark_tracking.errors import InvalidState
from spark_tracking.scoring.commits import Committed, user_metadata
from spark_tracking.scoring.file_rules import against_reading, against_writing, unusual_name
from spark_tracking.scoring.progress import progress
from spark_tracking.scoring.signature import arrow_type
from spark_tracking.scoring.staging import attempt
from spark_tracking.scoring.worker.files import WRITTEN, FilePlan, FileSlice, root, score_tasks, sees_log
from spark_tracking.spark.ask import ask
from spark_tracking.spark.session import is_connect, shares_files

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_tracking.scoring.job import Job
    from spark_tracking.scoring.tables import TableRef

_ROUNDS = 2  # tasks per slot at least, so that slots end together and progress shows, yet few files are written
_TASK_BYTES = 96 << 20  # of a larger source
_WHOLE_BYTES = 1 << 20  # to share out a smaller file gains nothing
_UNEVEN = 0.1  # by which a task may differ from the others so that a file stays whole


class NeedsSpark(Exception):
    """Why a job's files are not for workers to read or write by themselves."""


@dataclass(frozen=True)
class FilesStrategy:
    """A job whose tables allow it.

    Attributes:
        source, target: the tables' snapshots; no target where it does not exist yet.
        files: the source files to score, after `where` and `since`.
        output: Arrow schema of what is written.
    """

    name: ClassVar[str] = "files"

    job: Job
    source: Snapshot
    target: Snapshot | None
    files: tuple[DataFile, ...]
    output: pa.Schema

    @classmethod
    def of(cls, job: Job) -> FilesStrategy:
        """The strategy for a job.

        Raises:
            NeedsSpark: it is not possible; the reason is its text.
        """
        if job.call is None:
            raise NeedsSpark("a Spark ML model scores by its own transform")
        if job.request.mode == "merge":
            raise NeedsSpark("merging by key is Spark's work")
        if job.source.table is None:
            raise NeedsSpark("the source is a DataFrame")
        if job.source.version is None:
            raise NeedsSpark(f"the source is no Delta table but {job.source.table.format}")
        if job.source.table.location is None:
            raise NeedsSpark("the catalog does not say where the source's files are")
        for path in (job.source.table.location, job.target.path):
            if reason := delta_files.unreadable_path(path):
                raise NeedsSpark(reason)
        source = _snapshot(job.source.table, job.source.version)
        target = _snapshot(job.target) if job.target.exists else None
        files = _files_of(job, source)
        try:
            output = pa.schema([(field.name, arrow_type(field.dataType)) for field in job.output])
        except TypeError as error:
            raise NeedsSpark(f"a column's type has no Arrow form ({error})") from error
        against = chain(against_reading(source), _against_target(job, target, output), _against_workers(job.spark, source.uri, job.target))
        if reason := next(against, None):
            raise NeedsSpark(reason)
        return cls(job, source, target, files, output)

    def write(self) -> Committed:
        """Score the files and commit them."""
        job, location = self.job, self.job.target.path
        with attempt(location, job.token, self.target.version if self.target else 0) as running:
            written = self._score(running.folder)
            running.claim()
            if self.target is None:  # only now, so that a job that fails leaves no empty table
                delta_files.create(location, self.output, job.request.partition_by)
            at = delta_files.snapshot(location)
            if reason := next(against_writing(at, job.request.mode, self.output), None):
                raise InvalidState(f"The target '{job.target.text}' was changed while the job ran: now {reason}. Run it again.")
            rows, failed = sum(file["rows"] for file in written), sum(file["failed"] for file in written)
            new = [NewFile(file["path"], file["size"], json.loads(file["partition"]), file["stats"]) for file in written if file["rows"]]
            version = delta_files.commit(
                at,
                new,
                mode=cast(Any, job.request.mode),
                metadata={"userMetadata": user_metadata({**job.facts(self.name), "rows": rows, "failed": failed})},
                app=job.backlog.transaction,
            )
            with suppress(OSError):  # the work is done; what cannot be deleted is VACUUM's
                running.drop_all_but([file.path for file in new] if version is not None else ())
        return Committed(version, rows, failed)

    def _score(self, folder: str) -> list[dict[str, Any]]:
        spark, plan = self.job.spark, self._plan(folder)
        tasks = deal(self.files, _slots(spark))
        if not tasks:
            return []

        def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return score_tasks(plan, tasks, batches)

        scored = spark.range(0, len(tasks), 1, len(tasks)).mapInArrow(run, from_arrow_schema(WRITTEN))
        rows = None if any(file.rows is None for file in self.files) else sum(file.rows or 0 for file in self.files)
        with progress(spark, f"scoring {len(self.files)} files", rows=rows, show=self.job.request.show_progress):
            return [row.asDict() for row in scored.collect()]

    def _plan(self, folder: str) -> FilePlan:
        job, columns = self.job, self.job.source.df.schema
        assert job.call is not None
        return FilePlan(
            call=job.call,
            source=self.source.uri,
            target=job.target.path,
            folder=folder,
            columns=pa.schema([(name, arrow_type(columns[name].dataType)) for name in dict.fromkeys([*job.inputs, *job.keep])]),
            inputs=job.inputs,
            keep=job.keep,
            output=self.output,
            partition_by=self.target.partition_by if self.target else job.request.partition_by,
            prediction=job.request.prediction,
            error_column=job.request.error_column,
            constants=job.constants,
        )


def _snapshot(table: TableRef, version: int | None = None) -> Snapshot:
    if table.location is None:
        raise NeedsSpark("the catalog does not say where a table's files are")
    try:
        root(table.location)
        return delta_files.snapshot(table.location, version)
    except Exception as error:  # whatever keeps this client from the log: a feature, a credential, the network
        raise NeedsSpark(f"this client cannot read the log of '{table.location}' ({str(error).splitlines()[0]})") from error


def _files_of(job: Job, source: Snapshot) -> tuple[DataFile, ...]:
    """The files that `since` and `where` leave."""
    files, added, where = source.files, job.backlog.added, job.request.where
    if added is not None:
        if not added.keys() <= {file.path for file in files}:
            raise NeedsSpark("files that the source gained were rewritten since (a compaction)")
        files = tuple(file for file in files if file.path in added)
    if where is None or not files:
        return files
    if not source.partition_by:
        raise NeedsSpark("where= looks into the source's rows")
    # Spark itself judges the condition, on the partition values alone.
    schema = StructType([*(job.source.df.schema[name] for name in source.partition_by), StructField("__file", LongType())])
    rows = [(*(file.partition[name] for name in source.partition_by), number) for number, file in enumerate(files)]
    try:
        kept = job.spark.createDataFrame(rows, schema).where(where).collect()
    except AnalysisException as error:
        raise NeedsSpark("where= looks into the source's rows") from error
    return tuple(files[row["__file"]] for row in kept)


def _against_target(job: Job, target: Snapshot | None, output: pa.Schema) -> Iterator[str]:
    if target is not None:
        yield from against_writing(target, job.request.mode, output)
    elif name := unusual_name(output.names):
        yield f"a new table with a column '{name}' is Spark's to make"
    elif not job.target.is_path:
        yield "a new table of the catalog is Spark's to make"


def _against_workers(spark: SparkSession, source: str, target: TableRef) -> Iterator[str]:
    """Workers are certain to see what this process sees only where they are its children; elsewhere ask them."""
    if shares_files(spark):
        return
    if not target.exists and (target.location is None or "://" not in target.location):
        yield "a new table is Spark's to make where workers may not share this machine's folders"
    folders = [source, *([target.location] if target.exists and target.location else [])]
    answers = ask(spark, lambda: [folder for folder in folders if not sees_log(folder)], tasks=8)
    yield from (f"workers cannot read '{folder}'" for answer in answers for folder in answer)


def _slots(spark: SparkSession) -> int:
    """How many tasks the session runs at once; on Connect, where nothing tells, the shuffle partitions."""
    if is_connect(spark):
        return int(spark.conf.get("spark.sql.shuffle.partitions") or 8)
    return spark.sparkContext.defaultParallelism


def deal(files: Sequence[DataFile], slots: int) -> list[tuple[FileSlice, ...]]:
    """Share files out among tasks of about the same size, whole ones where that is even; a task's are of as few partitions as may be.

    `slots` is how many tasks run at once.

    Example:
        >>> [len(task) for task in deal(thousand_small_files, slots=2)]
        [250, 250, 250, 250]
    """
    total = sum(file.size for file in files)
    rounds = max(1 if len(files) <= slots else _ROUNDS, round(total / slots / _TASK_BYTES))
    count = min(slots * rounds, max(len(files), total // _WHOLE_BYTES))
    share = total / max(1, count)
    tasks: list[list[FileSlice]] = [[]]
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
                tasks[-1].append(FileSlice(file.path, file.partition, start, stop))
        begin += file.size
    return [tuple(task) for task in tasks if task]


def _cut(at: float, size: int, share: float) -> float:
    """Where to cut a file, as a fraction: at an end of it if one is near, since who begins within a row group decodes it in vain."""
    near = max(share * _UNEVEN, size / 2 if size <= _WHOLE_BYTES else 0)
    if min(at, size - at) > near:
        return at / size
    return 0.0 if at < size - at else 1.0
