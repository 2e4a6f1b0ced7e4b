"""Work that is done once: a job's name and the source version it reached are an application transaction of the target.

The transaction is in the very commit that brings the rows, so a job killed anywhere has either both or neither.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING
from urllib.parse import unquote

from pyspark.sql import functions as f

from spark_tracking.delta import files as delta_files
from spark_tracking.errors import InvalidInput, InvalidState
from spark_tracking.scoring.commits import scoring_facts
from spark_tracking.scoring.tables import PinnedSource, TableRef, find_table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from spark_tracking.scoring.job import Job, Request
    from spark_tracking.scoring.model import ResolvedModel


@dataclass(frozen=True)
class Backlog:
    """Which of the source's rows a job still has to score.

    Attributes:
        job: the job's name; None for work that may be repeated.
        version: up to which source version the job has scored after it; a source without versions is done once.
        since: up to which it had; `added`: path -> version of the files that the source gained after that. None for all rows.
    """

    job: str | None
    version: int
    since: int | None = None
    added: Mapping[str, int] | None = None
    done: bool = False

    @property
    def transaction(self) -> tuple[str, int] | None:
        """The application transaction that says that the job is done."""
        return (f"spark-tracking.score/{self.job}", self.version) if self.job else None

    def is_in(self, target: TableRef) -> bool:
        """Whether the work is in the target, whoever did it; Delta itself asks again as it commits."""
        if not self.transaction or target.location is None or delta_files.newest_version(target.location) is None:
            return False
        name, version = self.transaction
        reached = delta_files.transaction_version(target.location, name)
        return reached is not None and reached >= version


def backlog(request: Request, model: ResolvedModel, source: PinnedSource, target: TableRef, keep: tuple[str, ...]) -> Backlog:
    """The part of a job that is still to be done.

    Raises:
        InvalidInput: `since` without a Delta source, or of a version that the source does not have yet.
        InvalidState: the source lost or changed rows since then, which an append cannot follow.
    """
    job, since, newest = request.job, request.since, source.version
    if since is None:  # all rows again under a new model is new work
        todo = Backlog(job and f"{job}/{model.digest[:8]}", newest or 0)
        return Backlog(todo.job, todo.version, done=todo.is_in(target))
    if newest is None:
        raise InvalidInput(f"since={since!r} needs a Delta source; {source.label} has no versions. Leave since= out.")
    assert source.table is not None
    if since == "last":
        # The name says what the job is, though not which version of the model it uses.
        what = [_location(source.table), request.where, request.prediction, request.method, keep, model.name or model.pinned_uri]
        job = job or f"auto-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]}"
    todo = Backlog(job, newest)
    after = _last(todo, target) if since == "last" else int(since)
    if after is None:
        return todo
    if after > newest:
        raise InvalidState(
            f"The job '{job}' scored '{source.label}' up to version {after}, but its newest is {newest}: it was "
            "replaced or restored. Give another job= name to score it all."
        )
    changes = delta_files.changes(_location(source.table), after, newest)
    if changes.removed and request.mode != "merge":
        raise InvalidState(
            f"'{source.label}' lost or changed rows between versions {after} and {newest} (an update, delete or "
            "overwrite), which new rows alone cannot follow. Use mode='merge' with keys=, or score all of it with mode='overwrite'."
        )
    return Backlog(job, newest, after, changes.added, done=not changes.added)


def _last(todo: Backlog, target: TableRef) -> int | None:
    """Up to which source version the job's commits in the target reach."""
    assert todo.transaction is not None
    if not target.exists:
        return None
    location = _location(target)
    if delta_files.newest_version(location) is None:  # it exists for Spark; "no such table" here must not mean "never scored"
        raise InvalidState(
            f"What the job '{todo.job}' did before stands in the log of '{location}', which this client cannot read. Leave since= out."
        )
    return delta_files.transaction_version(location, todo.transaction[0])


def _location(table: TableRef) -> str:
    if table.location is None:
        raise InvalidInput(f"The catalog does not say where the files of '{table.text}' are, which since= and job= need. Leave them out.")
    return table.location


def rows_to_score(job: Job) -> DataFrame:
    """The rows that a job has to score, before `where`.

    Those of the files that the source gained: each file at the version that brought it, as it may be compacted since; those that
    still live at the pinned version in one go.
    """
    source, added = job.source, job.backlog.added
    if added is None:
        return source.df
    assert source.table is not None and source.version is not None
    live = {file.path for file in delta_files.snapshot(_location(source.table), source.version).files}
    names: dict[int, list[str]] = defaultdict(list)
    for path, version in added.items():
        names[source.version if path in live else version].append(unquote(path.rpartition("/")[2]))
    parts = [source.table.read(job.spark, version).where(f.col("_metadata.file_name").isin(files)) for version, files in names.items()]
    return reduce(lambda left, right: left.unionByName(right, allowMissingColumns=True), parts)


def committed_version(spark: SparkSession, target: str, token: str) -> int | None:
    """The version of the target that an attempt's commit made; None if Delta left it out as done before."""
    commits = spark.sql(f"DESCRIBE HISTORY {find_table(spark, target).sql} LIMIT 100").select("version", "userMetadata")
    found = (commit["version"] for commit in commits.collect() if (scoring_facts(commit["userMetadata"]) or {}).get("token") == token)
    return next(found, None)
