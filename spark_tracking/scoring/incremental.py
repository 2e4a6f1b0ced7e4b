"""Work that is done once: a job's name and the source version it reached are an application transaction of the target.

The transaction is in the very commit that brings the rows, so a job killed anywhere has either both or neither.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

from spark_tracking.errors import InvalidInput, InvalidState
from spark_tracking.lake import delta_files
from spark_tracking.scoring.commits import scoring_facts
from spark_tracking.scoring.source import Place, find_place, read_version

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from spark_tracking.scoring.work import Work


def pending(spark: SparkSession, work: Work, since: Literal["last"] | int | None) -> Work | None:
    """The part of a job that is still to be done; None if nothing is.

    Raises:
        InvalidInput: `since` without a Delta source, or of a version that the source does not have yet.
        InvalidState: the source lost or changed rows since then, which an append cannot follow.
    """
    if since is None and work.job is None:
        return work
    if since is None:
        work = replace(work, job=f"{work.job}/{work.model.digest[:8]}")  # all rows again under a new model is new work
        return None if is_done(work) else work
    newest = work.source.version
    if newest is None:
        raise InvalidInput(f"since={since!r} needs a Delta source; {work.source.label} has no versions. Leave since= out.")
    if since == "last":
        work = replace(work, job=work.job or _name(work))
    after = _last(work) if since == "last" else int(since)
    if after is None:
        return work
    if after > newest:
        raise InvalidState(
            f"The job '{work.job}' scored '{work.source.label}' up to version {after}, but its newest is {newest}: it was "
            "replaced or restored. Give another job= name to score it all."
        )
    return None if after == newest else _gained(work, after)


def _gained(work: Work, after: int) -> Work | None:
    assert work.source.version is not None
    changes = delta_files.changes(_location(work.source.place), after, work.source.version)
    if changes.removed and work.mode != "merge":
        raise InvalidState(
            f"'{work.source.label}' lost or changed rows between versions {after} and {work.source.version} (an update, delete or "
            "overwrite), which new rows alone cannot follow. Use mode='merge' with keys=, or score all of it with mode='overwrite'."
        )
    return replace(work, since=after, added=changes.added) if changes.added else None


def _name(work: Work) -> str:
    """A name that says what the job is, though not which version of the model it uses."""
    what = [_location(work.source.place), work.where, work.prediction, work.method, work.keep, work.model.name or work.model.pinned_uri]
    return f"auto-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]}"


def is_done(work: Work) -> bool:
    """Whether the job's work up to this source version is in the target, whoever did it; Delta itself asks again as it commits."""
    location = work.target.location
    if work.app_id is None or location is None or delta_files.newest_version(location) is None:
        return False
    done = delta_files.transaction_version(location, work.app_id)
    return done is not None and done >= work.app_version


def _last(work: Work) -> int | None:
    """Up to which source version the job's commits in the target reach."""
    assert work.app_id is not None
    if not work.target.exists:
        return None
    location = _location(work.target)
    if delta_files.newest_version(location) is None:  # it exists for Spark; "no such table" here must not mean "never scored"
        raise InvalidState(
            f"What the job '{work.job}' did before stands in the log of '{location}', which this client cannot read. Leave since= out."
        )
    return delta_files.transaction_version(location, work.app_id)


def _location(place: Place | None) -> str:
    assert place is not None
    if place.location is None:
        raise InvalidInput(f"The catalog does not say where the files of '{place.text}' are, which since= and job= need. Leave them out.")
    return place.location


def added_rows(spark: SparkSession, work: Work) -> DataFrame:
    """The rows of the files that the source gained, for Spark: each file at the version that brought it, as it may be
    compacted since; those that still live at the pinned version in one go."""
    from pyspark.sql import functions as f

    assert work.source.place is not None and work.source.version is not None and work.added is not None
    live = {file.path for file in delta_files.snapshot(_location(work.source.place), work.source.version).files}
    names: dict[int, list[str]] = defaultdict(list)
    for path, version in work.added.items():
        names[work.source.version if path in live else version].append(unquote(path.rpartition("/")[2]))
    parts = [
        read_version(spark, work.source.place, version).where(f.col("_metadata.file_name").isin(files)) for version, files in names.items()
    ]
    return reduce(lambda left, right: left.unionByName(right, allowMissingColumns=True), parts)


def committed_version(spark: SparkSession, work: Work) -> int | None:
    """The version of the target that this attempt's commit made; None if Delta left it out as done before."""
    commits = spark.sql(f"DESCRIBE HISTORY {find_place(spark, work.target.text).sql} LIMIT 100").select("version", "userMetadata")
    for commit in commits.collect():
        if (scoring_facts(commit["userMetadata"]) or {}).get("token") == work.token:
            return int(commit["version"])
    return None
