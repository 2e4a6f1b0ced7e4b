"""What may leave the trash for good: since when it lies there, and which files are the lake's own to delete.

A lake deletes files in one place only: the folder that it gave a run or model below the experiment's artifact location. An artifact
URI that says anything else, however it is written, points to files of somebody else, which stay.
"""

from __future__ import annotations

import os
from urllib.parse import unquote

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import append_to_uri_path, is_local_uri

from spark_tracking.errors import LakeError, Unavailable
from spark_tracking.kinds.state import time_of
from spark_tracking.lake import Entity, Lake, storage
from spark_tracking.masking import masked
from spark_tracking.uri import is_plain_id

NOWHERE = "file:///nonexistent/spark-tracking"
"""What `mlflow gc`, which deletes whatever a run's artifact URI says, is told of runs and models in the trash."""


def in_trash(lake: Lake, kind: str, before: int) -> list[str]:
    """Ids of what has been in the trash since `before` (ms) or longer; where nobody said since when, since the lake learned of it."""
    return [entity.id for entity in lake.search(kind, "lifecycle_stage = 'deleted'") if _since(entity) <= before]


def _since(entity: Entity) -> int:
    told = entity.number("deleted")
    return time_of(entity.fields["attr"]["lifecycle_stage"].stamp.hlc) if told is None else told


def remove_artifacts(lake: Lake, entity: Entity, experiment: Entity | None) -> None:
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
    """The path below the artifact root that a location's URI means.

    Raises:
        OSError: it leads out of it.
    """
    path = unquote(below) if lake.uri.is_local else below
    if any(part in ("", ".", "..") for part in path.split("/")[1:]) or "\0" in path:
        raise OSError(f"'{below}' is no plain path below the lake's artifacts")
    return path
