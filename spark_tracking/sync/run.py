"""`sync`: the one entrance, whatever the two ends are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime

from spark_tracking.errors import InvalidInput, InvalidUri
from spark_tracking.readers.query import milliseconds
from spark_tracking.sync.result import ARTIFACT_MODES, Progress, SyncResult, Wanted
from spark_tracking.sync.source import Source
from spark_tracking.uri import LakeUri, is_lake_uri, redact


def sync(
    source: str,
    target: str,
    *,
    experiments: Sequence[str] = (),
    filter: str | None = None,
    since: str | int | date | datetime | None = None,
    models: str | Sequence[str] = "all",
    artifacts: str = "reference",
    verify: bool = False,
    dry_run: bool = False,
    source_name: str | None = None,
    requests_per_second: float | None = None,
    progress: Progress | None = None,
) -> SyncResult:
    """Bring what a tracking server has into a lake. Doing it again copies what changed since, and nothing else.

    Args:
        source: the tracking URI to read: a lake, an MLflow database or a server.
        target: the lake's URI or folder; it is made when there is none.
        experiments: names or ids; default all.
        filter: only runs that satisfy this, in MLflow's filter language.
        since: only runs that started at or after this time.
        models: registered models: `all`, `none`, or names.
        artifacts: `reference` (stay where they are), `copy` or `none`.
        verify: compare everything, metric histories included, instead of what the listings show as changed.
        dry_run: change nothing, only tell what would change.
        source_name: what names the source, where its URI may change (a server that moves); must stay the same.
        requests_per_second: at most so many requests a second, to a server.
        progress: called with a kind and how many more of it are done.

    Returns:
        Counts, and the things that could not be copied with their reasons; those are tried again next time.

    Raises:
        InvalidInput, NotFound: a wrong option, or an experiment that the source does not have.
        Unavailable, PermissionRefused: the source or target as a whole.

    Example:
        >>> sync("sqlite:////srv/mlflow.db", "delta:///shared/lake").things["run"].new
        10000
    """
    if artifacts not in ARTIFACT_MODES:
        raise InvalidInput(f"artifacts='{artifacts}' is none of {', '.join(ARTIFACT_MODES)}.")
    named = models if models in ("all", "none") else tuple(models.split(",") if isinstance(models, str) else models)
    chosen = tuple(map(str, experiments))
    wanted = Wanted(chosen, filter, milliseconds(since, "since"), named, artifacts, verify, dry_run)
    target_uri = _lake_uri(target)
    if is_lake_uri(source) and str(LakeUri.parse(source)) == target_uri:
        raise InvalidInput(f"'{source}' is both source and target. Name another lake.")
    from spark_tracking.sync.into_lake import IntoLake

    reading = Source(source, source_name, requests_per_second)
    reading.reader.ping()
    return IntoLake(reading, target_uri, wanted, progress or (lambda kind, count: None)).sync()


def _lake_uri(target: str) -> str:
    try:
        return str(LakeUri.parse(target))
    except InvalidUri:
        raise InvalidInput(f"'{redact(target)}' is not a lake. Expected a folder or a lake's URI as the target.") from None
