"""Emptying the trash: what was deleted longer ago than the retention goes for good, artifacts included."""

from __future__ import annotations

from tqdm import tqdm

from spark_tracking import config
from spark_tracking.errors import LakeError, Unavailable
from spark_tracking.lake import Lake
from spark_tracking.store.base import now
from spark_tracking.store.tracking import LakeTrackingStore
from spark_tracking.store.trash import in_trash, remove_artifacts

_DAY_MS = 86_400_000
_KINDS = ("run", "logged_model", "experiment")


class Purged(dict[str, list[str]]):
    """By kind ('run', 'logged_model', 'experiment') the ids that went, or would.

    Attributes:
        kept: what had to stay in the trash, as a sentence each.
    """

    def __init__(self) -> None:
        super().__init__({kind: [] for kind in _KINDS})
        self.kept: list[str] = []


def purge_deleted(lake_uri: str, older_than_days: float | None = None, dry_run: bool = False) -> Purged:
    """Delete for good what has been in the trash for `older_than_days` (default: SPARK_TRACKING_RETENTION_DAYS, 30).

    Artifacts go first, so that a purge that is killed is simply done again; what cannot be deleted stays in the trash, and the rest
    goes on. Only a run's or model's own folder below its experiment's artifact location is deleted, links unlinked; files elsewhere stay.

    Raises:
        LakeFormatError: there is no lake at `lake_uri`.

    Example:
        >>> purge_deleted("./lake", dry_run=True)  # doctest: +SKIP
        {'run': ['01a1fdcd68707112b7837afdf42a479d'], 'logged_model': [], 'experiment': []}
    """
    lake = Lake.open(lake_uri)
    store = LakeTrackingStore(str(lake.uri))
    days = config.RETENTION_DAYS.get() if older_than_days is None else older_than_days
    old = {kind: in_trash(lake, kind, now() - int(days * _DAY_MS)) for kind in _KINDS}
    purged = Purged()
    waiting: set[str] = set()  # experiments that something stays in
    for experiment_id in old["experiment"]:
        old["logged_model"] += set(store._ids_in_experiment("logged_model", experiment_id)).difference(old["logged_model"])
        if set(store._ids_in_experiment("run", experiment_id)).difference(old["run"]):
            waiting.add(experiment_id)
    for kind in ("run", "logged_model"):
        purged[kind], kept = (old[kind], set[str]()) if dry_run else _remove_artifacts(lake, kind, old[kind], purged)
        waiting |= kept
        if purged[kind] and not dry_run:
            lake.purge(kind, purged[kind])
    purged["experiment"] = [id for id in old["experiment"] if id not in waiting]
    if not dry_run:
        for experiment_id in purged["experiment"]:
            store._hard_delete_experiment(experiment_id)
        lake.drop_purged()
    return purged


def _remove_artifacts(lake: Lake, kind: str, ids: list[str], purged: Purged) -> tuple[list[str], set[str]]:
    """Whose artifacts are gone, and the experiments of those whose are not."""
    entities = lake.get_many(kind, ids)
    experiments = lake.get_many("experiment", {e.attr("experiment_id") or "" for e in entities.values()})
    gone, kept = [], set()
    for id, entity in tqdm(entities.items(), desc="artifacts", unit="", disable=None):
        home = entity.attr("experiment_id") or ""
        try:
            remove_artifacts(lake, entity, experiments.get(home))
            gone.append(id)
        except (LakeError, Unavailable) as error:
            kept.add(home)
            purged.kept.append(f"The {kind.replace('_', ' ')} '{id}' stays in the trash: {error.message}.")
    return gone, kept
