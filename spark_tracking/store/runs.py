"""Runs: creation, state, params, tags, inputs, outputs, search, deletion."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from mlflow.entities import (
    DatasetInput,
    LifecycleStage,
    LoggedModelInput,
    LoggedModelOutput,
    Param,
    Run,
    RunInfo,
    RunInputs,
    RunStatus,
    RunTag,
)
from mlflow.entities.dataset_summary import _DatasetSummary
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.tracking import SEARCH_MAX_RESULTS_DEFAULT
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_LOGGED_MODELS,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    _get_run_name_from_tags,
)
from mlflow.utils.name_utils import _generate_random_name
from mlflow.utils.uri import append_to_uri_path
from mlflow.utils.validation import _validate_dataset_inputs, _validate_param, _validate_run_id, _validate_tag

from spark_tracking.errors import LakeError, Unavailable
from spark_tracking.kinds import entities, filters, lake_sql
from spark_tracking.kinds.catalog import RUN
from spark_tracking.kinds.shapes import dataset_register
from spark_tracking.kinds.state import Register, Stamp
from spark_tracking.lake import Entity, Event
from spark_tracking.store.base import (
    attrs,
    check_time,
    drop_none,
    folded,
    invalid,
    new_id,
    not_found,
    now,
    offset_of,
    page,
    pairs,
    require_values,
)
from spark_tracking.store.experiments import Experiments, check_max_results
from spark_tracking.store.trash import NOWHERE, in_trash, remove_artifacts

_log = logging.getLogger(__name__)
KIND = "run"
_DATASETS_SHOWN = 1000


class Runs(Experiments):
    """The part of the tracking store that keeps runs."""

    _emptying = False
    """Whether `mlflow gc` has asked for the trash."""

    def create_run(
        self, experiment_id: str, user_id: str, start_time: int | None, tags: Sequence[RunTag] | None, run_name: str | None
    ) -> Run:
        """A new run of an active experiment."""
        experiment = self._active_experiment(experiment_id)
        tags = list(tags or ())
        tagged = _get_run_name_from_tags(tags)
        if run_name and tagged and run_name != tagged:
            raise invalid(
                "Both 'run_name' argument and 'mlflow.runName' tag are specified, but with "
                f"different values (run_name='{run_name}', mlflow.runName='{tagged}')."
            )
        run_name = run_name or tagged or _generate_random_name()
        if not tagged:
            tags.append(RunTag(MLFLOW_RUN_NAME, run_name))
        run_id, time = new_id(), now()
        values: dict[str, Any] = {
            "created": time,
            "experiment_id": experiment.id,
            "run_name": run_name,
            "created_by": user_id,
            "status": RunStatus.to_string(RunStatus.RUNNING),
            "start_time": check_time("start_time", time if start_time is None else start_time),
            "lifecycle_stage": LifecycleStage.ACTIVE,
            "artifact_uri": append_to_uri_path(experiment.attr("artifact_location"), run_id, "artifacts"),
        }
        events = [*attrs(KIND, run_id, **drop_none(values)), *pairs(KIND, run_id, "tag", tags)]
        run = entities.run(folded(KIND, run_id, events))
        self.lake.write(events)
        return Run(run.info, run.data, RunInputs(dataset_inputs=[]))

    def get_run(self, run_id: str) -> Run:
        """The run with all it has, deleted or not."""
        return entities.run(self._shown(self._run(run_id)))

    def update_run_info(self, run_id: str, run_status: int | None, end_time: int | None, run_name: str | None) -> RunInfo:
        """Set what is given, of an active run. The end of a root run makes its rows visible to readers of the tables."""
        run = self._active_run(run_id)
        status = None if run_status is None else RunStatus.to_string(run_status)
        values: dict[str, Any] = {"status": status, "end_time": check_time("end_time", end_time), "run_name": run_name or None}
        events = attrs(KIND, run_id, **drop_none(values))
        if run_name:
            events.append(Event(KIND, run_id, "tag", MLFLOW_RUN_NAME, str(run_name)))
        self.lake.write(events)
        if run_status is not None and RunStatus.is_terminated(run_status):
            self.lake.settle(wait=MLFLOW_PARENT_RUN_ID not in run.items("tag"), of=(KIND, run_id))
        return entities.run_info(self._run(run_id))

    def delete_run(self, run_id: str) -> None:
        """Move the run to the trash."""
        self._run(run_id)
        self.lake.write(attrs(KIND, run_id, lifecycle_stage=LifecycleStage.DELETED, deleted=now()))

    def restore_run(self, run_id: str) -> None:
        """Take the run out of the trash."""
        self._run(run_id)
        self.lake.write(attrs(KIND, run_id, lifecycle_stage=LifecycleStage.ACTIVE, deleted=None))

    def search_runs(
        self,
        experiment_ids: Sequence[str],
        filter_string: str | None,
        run_view_type: int,
        max_results: int | None = SEARCH_MAX_RESULTS_DEFAULT,
        order_by: Sequence[str] | None = None,
        page_token: str | None = None,
    ) -> PagedList[Run]:
        """One page of the runs that satisfy the filter."""
        check_max_results(max_results, optional=True)
        where = lake_sql.all_of(
            lake_sql.one_of("experiment_id", map(filters.experiment_id, experiment_ids)),
            lake_sql.in_stages(run_view_type),
            lake_sql.predicate(filters.parse(RUN, filter_string)),
        )
        offset, order = offset_of(page_token), lake_sql.runs_order(order_by)
        found = self.lake.search(KIND, where, order, None if max_results is None else max_results + 1, offset)
        return page(found, offset, len(found) if max_results is None else max_results, entities.run)

    def _search_runs(self, *args: Any, **kwargs: Any) -> tuple[list[Run], str | None]:
        """The same, as MLflow's base class wants it."""
        found = self.search_runs(*args, **kwargs)
        return list(found), found.token

    # -- params and tags ----------------------------------------------------------------------------------------

    def log_param(self, run_id: str, param: Param) -> None:
        """Log one param; the same value again is fine, another one is refused."""
        param = _validate_param(param.key, param.value)
        old = self._active_run(run_id).items("param").get(param.key)
        if old is None:
            require_values("params.value", [param])
            self.lake.write(pairs(KIND, run_id, "param", [param]), polled=True)
        elif old != param.value:
            raise invalid(
                f"Changing param values is not allowed. Param with key='{param.key}' was already logged with "
                f"value='{old}' for run ID='{run_id}'. Attempted logging new value '{param.value}'."
            )

    def set_tag(self, run_id: str, tag: RunTag) -> None:
        """Set one tag; `mlflow.runName` also renames the run."""
        tag = _validate_tag(tag.key, tag.value)
        self._active_run(run_id)
        self.lake.write(_tag_events(run_id, [tag]), polled=True)

    def delete_tag(self, run_id: str, key: str) -> None:
        """Remove one tag."""
        if key not in self._active_run(run_id).items("tag"):
            raise not_found(f"No tag with name: {key} in run with id {run_id}")
        self.lake.write([Event(KIND, run_id, "tag", key, None)])

    def record_logged_model(self, run_id: str, mlflow_model: Any) -> None:
        """Note a model that was logged, in the run's tag `mlflow.log-model.history`."""
        from mlflow.models import Model

        if not isinstance(mlflow_model, Model):
            raise TypeError(f"Argument 'mlflow_model' should be mlflow.models.Model, got '{type(mlflow_model)}'")
        before = self._active_run(run_id).items("tag").get(MLFLOW_LOGGED_MODELS, "[]")
        value = json.dumps([*json.loads(before), mlflow_model.get_tags_dict()])
        _validate_tag(MLFLOW_LOGGED_MODELS, value)
        self.lake.write([Event(KIND, run_id, "tag", MLFLOW_LOGGED_MODELS, value)])

    # -- inputs and outputs -------------------------------------------------------------------------------------

    def log_inputs(self, run_id: str, datasets: list[DatasetInput] | None = None, models: list[LoggedModelInput] | None = None) -> None:
        """Note what a run read. A dataset that its experiment knows by name and digest stays as it was first described."""
        _validate_run_id(run_id)
        if datasets is not None:
            if not isinstance(datasets, list):
                raise TypeError(f"Argument 'datasets' should be a list, got '{type(datasets)}'")
            _validate_dataset_inputs(datasets)
        run = self._active_run(run_id)
        events = [Event(KIND, run_id, "model_input", model.model_id, "") for model in models or ()]
        if datasets:
            events += self._dataset_events(run, datasets)
        self.lake.write(events)

    def log_outputs(self, run_id: str, models: list[LoggedModelOutput]) -> None:
        """Note which logged models a run made, and at which step."""
        self._active_run(run_id)
        self.lake.write([Event(KIND, run_id, "model_output", model.model_id, str(int(model.step))) for model in models])

    def _dataset_events(self, run: Entity, datasets: list[DatasetInput]) -> list[Event]:
        if any(one.dataset is None for one in datasets):
            raise MlflowException("Dataset input must have a dataset associated with it.", INTERNAL_ERROR)
        experiment = self._experiment(run.attr("experiment_id") or "")
        known, mine = experiment.items("dataset"), run.items("dataset")
        events: dict[str, list[Event]] = {}
        for one in datasets:
            key, described = dataset_register(dict(one.dataset), {})
            if key in mine or key in events:
                continue
            first = json.loads(known.get(key, described))
            value = dataset_register(first, {tag.key: tag.value for tag in one.tags or ()}, len(mine) + len(events))[1]
            events[key] = [Event(KIND, run.id, "dataset", key, value)]
            if key not in known:
                events[key].append(Event("experiment", experiment.id, "dataset", key, described))
        return [event for two in events.values() for event in two]

    def _search_datasets(self, experiment_ids: Sequence[str]) -> list[_DatasetSummary]:
        """The datasets that runs of these experiments read, each name, digest and context once."""
        ids = lake_sql.one_of("experiment_id", map(filters.experiment_id, experiment_ids))
        rows = self.lake.scan("runs_latest", ["experiment_id", "datasets"], f"{ids} AND cardinality(datasets) > 0")
        seen: dict[tuple[str, str, str, str | None], None] = {}
        for batch in rows:
            for experiment_id, datasets in zip(*(column.to_pylist() for column in batch.columns)):
                for d in datasets:
                    context = dict(d["tags"] or ()).get(MLFLOW_DATASET_CONTEXT)
                    seen[experiment_id, d["name"], d["digest"], context] = None
        return [_DatasetSummary(*one) for one in list(seen)[:_DATASETS_SHOWN]]

    # -- hard deletion (for `mlflow gc`) ------------------------------------------------------------------------

    def _get_deleted_runs(self, older_than: int = 0) -> list[str]:
        """Ids of the runs that have been in the trash for at least `older_than` ms."""
        return self._ids_in_trash(KIND, older_than)

    def _hard_delete_run(self, run_id: str) -> None:
        """Delete a run for good."""
        self._purge_with_artifacts(self._run(run_id))

    def _ids_in_trash(self, kind: str, older_than: int) -> list[str]:
        self._emptying = True
        return in_trash(self.lake, kind, now() - older_than)

    def _shown(self, entity: Entity) -> Entity:
        """An entity as callers may see it: to `mlflow gc`, which deletes what a URI says, the trash has no artifacts."""
        if self._emptying and entity.deleted:
            fields = {**entity.fields["attr"], "artifact_uri": Register(Stamp(0, ""), f"{NOWHERE}/{entity.id}")}
            entity.fields["attr"] = fields
        return entity

    def _purge_with_artifacts(self, entity: Entity) -> None:
        """Delete for good; what cannot be deleted stays in the trash and is told, so that the rest goes on."""
        try:
            remove_artifacts(self.lake, entity, self.lake.get("experiment", entity.attr("experiment_id") or ""))
        except (LakeError, Unavailable) as error:
            _log.warning("The %s '%s' was not deleted and stays in the trash: %s.", entity.kind, entity.id, error.message)
        else:
            self.lake.purge(entity.kind, [entity.id])

    # -- what the other parts build on --------------------------------------------------------------------------

    def _run(self, run_id: str, points: bool = True) -> Entity:
        run = self.lake.get(KIND, run_id, points)
        if run is None:
            raise not_found(f"Run with id={run_id} not found")
        return run

    def _active_run(self, run_id: str) -> Entity:
        run = self._run(run_id, points=False)
        if run.deleted:
            raise invalid(f"The run {run_id} must be in the 'active' state. Current state is deleted.")
        return run

    def _batch_events(self, run: Entity, params: Sequence[Param], tags: Sequence[RunTag]) -> list[Event]:
        """The events of a validated batch.

        Raises:
            MlflowException: a param has another value already, or none.
        """
        if not params:
            return _tag_events(run.id, tags)
        old = run.items("param")
        changed = [{"key": p.key, "old_value": old[p.key], "new_value": p.value} for p in params if old.get(p.key, p.value) != p.value]
        if changed:
            raise invalid(f"Changing param values is not allowed. Params were already logged='{changed}' for run ID='{run.id}'.")
        new = [p for p in params if p.key not in old]
        require_values("params.value", new)
        return pairs(KIND, run.id, "param", new) + _tag_events(run.id, tags)


def _tag_events(run_id: str, tags: Sequence[RunTag]) -> list[Event]:
    events = pairs(KIND, run_id, "tag", (t for t in tags if t.key != MLFLOW_RUN_NAME or t.value))
    return events + [e._replace(field="attr", key="run_name") for e in events if e.key == MLFLOW_RUN_NAME]
