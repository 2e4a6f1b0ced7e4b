"""The trash: what goes in, what may leave it for good, and which files are the lake's own to delete.

A lake deletes files in one place only: the folder that it gave a run or model below the experiment's artifact location. An artifact
URI that says anything else, however it is written, points to files of somebody else, which stay.
"""

from __future__ import annotations

import logging
import os
from urllib.parse import unquote

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.uri import append_to_uri_path, is_local_uri
from tqdm import tqdm

from spark_tracking import config
from spark_tracking.address import is_plain_id
from spark_tracking.delta import storage
from spark_tracking.errors import LakeError, NotFound, Unavailable
from spark_tracking.here import active_tracking_uri
from spark_tracking.kinds import lake_sql
from spark_tracking.kinds.catalog import EXPERIMENT, LOGGED_MODEL, RUN
from spark_tracking.kinds.state import Register, Stamp, time_of
from spark_tracking.lake import Entity, Lake
from spark_tracking.masking import masked
from spark_tracking.store.things import Home, attrs, ids_in, now

_log = logging.getLogger(__name__)
_NOWHERE = "file:///nonexistent/spark-tracking"
"""What `mlflow gc`, which deletes whatever a run's artifact URI says, is told of runs and models in the trash."""
_TOGETHER = 500
"""Parents whose children are looked up in one query."""
_DAY_MS = 86_400_000
_KINDS = ("run", "logged_model", "experiment")


def delete_run(run_id: str, descendants: bool = False, tracking_uri: str | None = None, dry_run: bool = False) -> list[str]:
    """Move a run to the trash, with its descendants if that is wanted; all of them at once, or none.

    MLflow deletes a parent alone and leaves its children where no page shows them as anyone's. `mlflow gc` and
    `spark-tracking lake purge` empty the trash; until then `MlflowClient.restore_run` takes a run out of it.

    Args:
        run_id: the run, in a lake.
        descendants: also its children, by their tag `mlflow.parentRunId`, and theirs.
        tracking_uri: the lake; default the current tracking URI.
        dry_run: change nothing, only tell.

    Returns:
        The ids of the runs that went to the trash, or would: the run first, then those below it that were not there already.

    Raises:
        NotFound: the lake has no such run.
        InvalidInput: no tracking URI was given or set, or it is not a lake's.

    Example:
        >>> import spark_tracking as st
        >>> st.delete_run("01a1fdcd68707112b7837afdf42a479d", descendants=True)  # doctest: +SKIP
        ['01a1fdcd68707112b7837afdf42a479d', '01a1fdcd68717f31a5b8d3d1c8e0a7b2']
    """
    lake = Lake.open(active_tracking_uri() if tracking_uri is None else tracking_uri)
    if lake.get("run", run_id) is None:
        raise NotFound(f"Run with id={run_id} not found in {lake.uri}. Look for it with `mlflow runs list`, or in another lake.")
    doomed = [run_id, *(_descendants(lake, run_id) if descendants else ())]
    if not dry_run:
        time = now()
        lake.write([event for id in doomed for event in attrs("run", id, lifecycle_stage="deleted", deleted=time)])
    return doomed


def _descendants(lake: Lake, run_id: str) -> list[str]:
    """Ids of all runs below, those in the trash left out but looked through."""
    found: dict[str, bool] = {}
    generation = [run_id]
    while generation:
        children: list[str] = []
        for start in range(0, len(generation), _TOGETHER):
            where = lake_sql.one_of(f"tags[{lake_sql.quote(MLFLOW_PARENT_RUN_ID)}]", generation[start : start + _TOGETHER])
            for batch in lake.scan("runs_latest", ["run_id", "lifecycle_stage"], where):
                for id, stage in zip(*(column.to_pylist() for column in batch.columns)):
                    if id not in found and id != run_id:  # a cycle of tags is nobody's family tree
                        found[id] = stage == "active"
                        children.append(id)
        generation = children
    return [id for id, active in found.items() if active]


class Trash:
    """The trash of a store as `mlflow gc` empties it."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._emptying = False  # whether `mlflow gc` has asked for it

    def ids(self, kind: str, older_than: int) -> list[str]:
        """What has been in it for at least `older_than` ms."""
        self._emptying = True
        return _in_trash(self._home.lake, kind, now() - older_than)

    def shown(self, entity: Entity) -> Entity:
        """An entity as callers may see it: to `mlflow gc`, which deletes what a URI says, the trash has no artifacts."""
        if self._emptying and entity.deleted:
            fields = {**entity.fields["attr"], "artifact_uri": Register(Stamp(0, ""), f"{_NOWHERE}/{entity.id}")}
            entity.fields["attr"] = fields
        return entity

    def purge(self, entity: Entity) -> None:
        """Delete for good, with artifacts; what cannot be deleted stays in the trash and is told, so that the rest goes on."""
        lake = self._home.lake
        try:
            _remove_artifacts(lake, entity, lake.get("experiment", entity.attr("experiment_id") or ""))
        except (LakeError, Unavailable) as error:
            _log.warning("The %s '%s' was not deleted and stays in the trash: %s.", entity.kind, entity.id, error.message)
        else:
            lake.purge(entity.kind, [entity.id])


def purge_experiment(lake: Lake, id: str) -> None:
    """Delete an experiment for good, with its runs and logged models."""
    for kind in (RUN, LOGGED_MODEL):
        lake.purge(kind.name, ids_in(lake, kind, id))
    lake.purge(EXPERIMENT.name, [id])


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
    days = config.RETENTION_DAYS.get() if older_than_days is None else older_than_days
    old = {kind: _in_trash(lake, kind, now() - int(days * _DAY_MS)) for kind in _KINDS}
    purged = Purged()
    waiting: set[str] = set()  # experiments that something stays in
    for experiment_id in old["experiment"]:
        old["logged_model"] += set(ids_in(lake, LOGGED_MODEL, experiment_id)).difference(old["logged_model"])
        if set(ids_in(lake, RUN, experiment_id)).difference(old["run"]):
            waiting.add(experiment_id)
    for kind in ("run", "logged_model"):
        purged[kind], kept = (old[kind], set[str]()) if dry_run else _remove_all_artifacts(lake, kind, old[kind], purged)
        waiting |= kept
        if purged[kind] and not dry_run:
            lake.purge(kind, purged[kind])
    purged["experiment"] = [id for id in old["experiment"] if id not in waiting]
    if not dry_run:
        for experiment_id in purged["experiment"]:
            purge_experiment(lake, experiment_id)
        lake.drop_purged()
    return purged


def _remove_all_artifacts(lake: Lake, kind: str, ids: list[str], purged: Purged) -> tuple[list[str], set[str]]:
    """Whose artifacts are gone, and the experiments of those whose are not."""
    entities = lake.get_many(kind, ids)
    experiments = lake.get_many("experiment", {e.attr("experiment_id") or "" for e in entities.values()})
    gone, kept = [], set()
    for id, entity in tqdm(entities.items(), desc="artifacts", unit="", disable=None):
        home = entity.attr("experiment_id") or ""
        try:
            _remove_artifacts(lake, entity, experiments.get(home))
            gone.append(id)
        except (LakeError, Unavailable) as error:
            kept.add(home)
            purged.kept.append(f"The {kind.replace('_', ' ')} '{id}' stays in the trash: {error.message}.")
    return gone, kept


def _in_trash(lake: Lake, kind: str, before: int) -> list[str]:
    """Ids of what has been in the trash since `before` (ms) or longer; where nobody said since when, since the lake learned of it."""

    def since(entity: Entity) -> int:
        told = entity.number("deleted")
        return time_of(entity.fields["attr"]["lifecycle_stage"].stamp.hlc) if told is None else told

    return [entity.id for entity in lake.search(kind, "lifecycle_stage = 'deleted'") if since(entity) <= before]


def _remove_artifacts(lake: Lake, entity: Entity, experiment: Entity | None) -> None:
    """Delete the files of a run or model that are the lake's own. Links are unlinked, never followed.

    Raises:
        LakeError, Unavailable: some could not be deleted.
    """
    uri, root = entity.attr("artifact_uri") or "", lake.uri.artifact_root
    location, own = _own_folder(root, entity, experiment)
    if not location or uri.startswith("mlflow-artifacts:"):  # those are a server's, which alone can delete them
        return
    try:
        if f"{location}/".startswith(f"{root}/"):
            storage.of(lake.uri.root).remove_folder("artifacts" + _path(location.removeprefix(root), lake), own)
        elif is_local_uri(uri):
            storage.of(os.path.realpath(local_file_uri_to_path(location))).remove_folder("", own)
        else:
            get_artifact_repository(uri).delete_artifacts()
    except LakeError:
        raise
    except FileNotFoundError:
        pass
    except Exception as error:  # those of the stores' clients have no class in common
        said = str(error.message if isinstance(error, MlflowException) else error).strip() or type(error).__name__
        raise Unavailable(f"its artifacts at '{uri}' could not be deleted: {masked(said.splitlines()[0]).rstrip('.')}") from None


def _own_folder(root: str, entity: Entity, experiment: Entity | None) -> tuple[str | None, str]:
    """The artifact location that a thing's URI lies below, and its own folder there; None where the URI is any other."""
    own = f"models/{entity.id}/artifacts" if entity.kind == "logged_model" else f"{entity.id}/artifacts"
    home = entity.attr("experiment_id")
    if is_plain_id(entity.id) and is_plain_id(home):
        given = (experiment.attr("artifact_location") or "").rstrip("/") if experiment else ""
        for location in (given, f"{root}/{home}"):  # where MLflow's calls put it, and where a sync did
            if location and entity.attr("artifact_uri") == append_to_uri_path(location, own):
                return location, own
    return None, own


def _path(below: str, lake: Lake) -> str:
    """The path below the artifact root that a location's URI means. Raises OSError: it leads out of it."""
    path = unquote(below) if lake.uri.is_local else below
    if any(part in ("", ".", "..") for part in path.split("/")[1:]) or "\0" in path:
        raise OSError(f"'{below}' is no plain path below the lake's artifacts")
    return path
