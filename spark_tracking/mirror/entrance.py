"""`sync`: the one entrance, whatever the two ends are."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from spark_tracking.address import Address, LakeUri
from spark_tracking.errors import InvalidInput, InvalidUri, Unavailable
from spark_tracking.masking import masked
from spark_tracking.mirror.result import ARTIFACT_MODES, Progress, SyncResult, Wanted
from spark_tracking.mirror.source import Source
from spark_tracking.readers.query import Time, milliseconds


def sync(
    source: str,
    target: str,
    *,
    experiments: Sequence[str] = (),
    filter: str | None = None,
    since: Time | None = None,
    models: str | Sequence[str] = "all",
    artifacts: str = "reference",
    verify: bool = False,
    dry_run: bool = False,
    force: bool = False,
    source_name: str | None = None,
    requests_per_second: float | None = None,
    requests_at_once: int = 4,
    progress: Progress | None = None,
) -> SyncResult:
    """Bring what a tracking server has into a lake, or to a server. Doing it again copies what changed since, and nothing else.

    Args:
        source: the tracking URI to read: a lake, an MLflow database, a server, an `mlruns/` folder, or a folder of Delta tables in
            the layout of `system.mlflow`.
        target: a lake's URI or folder, which is made when there is none; or a server (`http://…`, `databricks`).
        experiments: names or ids; default all.
        filter: only runs that satisfy this, in MLflow's filter language.
        since: only runs that started at or after this time.
        models: registered models: `all`, `none`, or names.
        artifacts: `reference` (stay where they are), `copy` or `none`.
        verify: compare everything, metric histories and files included, instead of what the listings show as changed.
        dry_run: change nothing, only tell what would change.
        force: go on where a listing of the source has shrunk to less than half since the last sync, which else stops this one.
        source_name: what names the source, where its URI may change (a server that moves); must stay the same.
        requests_per_second: at most so many requests a second, to each server.
        requests_at_once: at most so many requests under way, to each server.
        progress: called with a kind and how many more of it are done.

    Returns:
        Counts, and the things that could not be copied with their reasons; those are tried again next time.

    Raises:
        InvalidInput, NotFound: a wrong option, or an experiment that the source does not have.
        Unavailable, PermissionRefused: the source or target as a whole; or a listing of the source lacks most of what it had.

    Example:
        >>> sync("sqlite:////srv/mlflow.db", "delta:///shared/lake").things["run"].new
        10000
    """
    if artifacts not in ARTIFACT_MODES:
        raise InvalidInput(f"artifacts='{artifacts}' is none of {', '.join(ARTIFACT_MODES)}.")
    named = models if models in ("all", "none") else tuple(models.split(",") if isinstance(models, str) else models)
    chosen = tuple(map(str, experiments))
    wanted = Wanted(chosen, filter, milliseconds(since, "since"), named, artifacts, verify, dry_run, force)
    told = progress or (lambda kind, count: None)
    into_server = Address.of(target).is_server
    target_uri = target if into_server else _lake_uri(target)
    reading = Source(source, source_name, requests_per_second, requests_at_once)
    reading.reader.ping()
    if into_server:
        from spark_tracking.mirror.into_server import IntoServer
        from spark_tracking.mirror.target_server import Server

        return IntoServer(reading, Server(target, requests_per_second, requests_at_once), wanted, told).sync()
    from spark_tracking.mirror.into_lake import IntoLake

    if reading.reader.uri == target_uri:
        raise InvalidInput(f"'{source}' is both source and target. Name another lake.")
    return IntoLake(reading, target_uri, wanted, told).sync()


def _lake_uri(target: str) -> str:
    try:
        uri = LakeUri.parse(target)
        if uri.is_local and uri.path.is_file():
            raise InvalidUri("")
        return str(uri)
    except InvalidUri:
        raise InvalidInput(
            f"'{masked(target, target)}' is no target. Expected a lake's URI or folder, or a server's URL; into an MLflow database by an "
            "`mlflow server --backend-store-uri` on it."
        ) from None


def follow(source: str, target: str, every: float = 60.0, **options: Any) -> Iterator[SyncResult]:
    """Sync again and again, one result each time, with `every` seconds between two beginnings; for as long as it is iterated.

    A source that cannot be reached for a while is asked again the next time. Options as for `sync`.

    Example:
        >>> for result in follow("http://mlflow:5000", "delta:///shared/lake", every=300):
        ...     print(result.points)
    """
    while True:
        begin = time.monotonic()
        try:
            yield sync(source, target, **options)
        except Unavailable as error:
            missed = SyncResult(source, target)
            missed.fail("experiment", "*", error)
            yield missed
        time.sleep(max(0.0, every - (time.monotonic() - begin)))
