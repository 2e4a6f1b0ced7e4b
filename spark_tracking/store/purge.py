"""Emptying the trash: what was deleted longer ago than the retention goes for good, artifacts included."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from tqdm import tqdm

from spark_tracking import config
from spark_tracking.lake import Entity, Lake
from spark_tracking.store.base import now
from spark_tracking.store.tracking import LakeTrackingStore

_DAY_MS = 86_400_000
_TRASH = {"run": "runs_latest", "logged_model": "logged_models_latest", "experiment": "experiments_latest"}


def purge_deleted(lake_uri: str, older_than_days: float | None = None, dry_run: bool = False) -> dict[str, list[str]]:
    """Delete for good what has been in the trash for `older_than_days` (default: SPARK_TRACKING_RETENTION_DAYS, 30).

    Artifacts go first, so that a purge that is killed is simply done again. They go only where they lie below their
    experiment's artifact location in a folder of the run's or model's own; others are left alone.

    Returns:
        By kind ('run', 'logged_model', 'experiment') the ids that went, or would.

    Raises:
        LakeFormatError: there is no lake at `lake_uri`.

    Example:
        >>> purge_deleted("./lake", dry_run=True)  # doctest: +SKIP
        {'run': ['01a1fdcd68707112b7837afdf42a479d'], 'logged_model': [], 'experiment': []}
    """
    lake = Lake.open(lake_uri)
    days = config.RETENTION_DAYS.get() if older_than_days is None else older_than_days
    doomed = {kind: list(_in_trash(lake, kind, now() - int(days * _DAY_MS))) for kind in _TRASH}
    if dry_run:
        return doomed
    _remove_artifacts(lake, [e for kind in ("run", "logged_model") for e in lake.get_many(kind, doomed[kind]).values()])
    store = LakeTrackingStore(str(lake.uri))
    for kind in ("run", "logged_model"):
        if doomed[kind]:
            lake.purge(kind, doomed[kind])
    for experiment_id in doomed["experiment"]:
        store._hard_delete_experiment(experiment_id)
    lake.drop_purged()
    return doomed


def _in_trash(lake: Lake, kind: str, before: int) -> Iterator[str]:
    for entity in lake.search(kind, "lifecycle_stage = 'deleted'"):
        since = entity.number("deleted") or entity.number("updated") or 0
        if since <= before:
            yield entity.id


def _remove_artifacts(lake: Lake, entities: list[Entity]) -> None:
    experiments = lake.get_many("experiment", {e.attr("experiment_id") or "" for e in entities})
    for entity in tqdm(entities, desc="artifacts", unit="", disable=None):
        uri = entity.attr("artifact_uri") or ""
        experiment = experiments.get(entity.attr("experiment_id") or "")
        location = (experiment.attr("artifact_location") or "").rstrip("/") if experiment else ""
        own = f"/{entity.id}/" in f"{uri}/"
        if not (location and own and uri.startswith(f"{location}/") and ".." not in uri.split("/")):
            continue
        try:
            get_artifact_repository(uri).delete_artifacts()
        except FileNotFoundError:
            pass
        except MlflowException as error:
            tqdm.write(f"The artifacts of {entity.kind} '{entity.id}' at '{uri}' could not be removed: {error.message}")
