"""Deleting a run together with what it started: its children, their children, and so on."""

from __future__ import annotations

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from spark_tracking.errors import NotFound
from spark_tracking.here import active_tracking_uri
from spark_tracking.kinds import lake_sql
from spark_tracking.lake import Lake
from spark_tracking.store.base import attrs, now

_TOGETHER = 500
"""Parents whose children are looked up in one query."""


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
