"""Runs: creation, state, params, tags, inputs, outputs, search, deletion."""

from __future__ import annotations

import json
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
from mlflow.utils import validation
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_LOGGED_MODELS,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    _get_run_name_from_tags,
)
from mlflow.utils.name_utils import _generate_random_name
from mlflow.utils.uri import append_to_uri_path

from spark_tracking.kinds import entities, filters, lake_sql
from spark_tracking.kinds.catalog import RUN
from spark_tracking.kinds.shapes import dataset_register
from spark_tracking.lake import Entity, Event
from spark_tracking.store.experiments import Experiments, check_max_results
from spark_tracking.store.things import Home, Things, check_time, invalid, new_id, not_found, now, pairs, require_values
from spark_tracking.store.trash import Trash

_DATASETS_SHOWN = 1000


class Runs(Things[Run]):
    """Runs, but for their metrics."""

    kind = RUN
    missing = "Run with id={} not found"

    def __init__(self, home: Home, experiments: Experiments, trash: Trash) -> None:
        super().__init__(home)
        self._experiments, self._trash = experiments, trash

    def entity(self, state: Entity) -> Run:
        return entities.run(state)

    def create_run(
        self, experiment_id: str, user_id: str, start_time: int | None, tags: Sequence[RunTag] | None, run_name: str | None
    ) -> Run:
        """A new run of an active experiment."""
        experiment = self._experiments.active(experiment_id)
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
        events = self.made(run_id, values, tags)
        run = self.entity(self.folded(run_id, events))
        self.lake.write(events)
        return Run(run.info, run.data, RunInputs(dataset_inputs=[]))

    def get_run(self, run_id: str) -> Run:
        """The run with all it has, deleted or not."""
        return self.entity(self._trash.shown(self.find(run_id)))

    def update_run_info(self, run_id: str, run_status: int | None, end_time: int | None, run_name: str | None) -> RunInfo:
        """Set what is given, of an active run. The end of a root run makes its rows visible to readers of the tables."""
        run = self.active(run_id)
        status = None if run_status is None else RunStatus.to_string(run_status)
        values: dict[str, Any] = {"status": status, "end_time": check_time("end_time", end_time), "run_name": run_name or None}
        events = self.attrs(run_id, **{name: value for name, value in values.items() if value is not None})
        if run_name:
            events.append(Event(RUN.name, run_id, "tag", MLFLOW_RUN_NAME, str(run_name)))
        self.lake.write(events)
        if run_status is not None and RunStatus.is_terminated(run_status):
            self.lake.settle(wait=MLFLOW_PARENT_RUN_ID not in run.items("tag"), of=(RUN.name, run_id))
        return entities.run_info(self.find(run_id))

    def delete_run(self, run_id: str) -> None:
        """Move the run to the trash."""
        self.set(self.find(run_id).id, lifecycle_stage=LifecycleStage.DELETED, deleted=now())

    def restore_run(self, run_id: str) -> None:
        """Take the run out of the trash."""
        self.set(self.find(run_id).id, lifecycle_stage=LifecycleStage.ACTIVE, deleted=None)

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
        return self.page(where, lake_sql.runs_order(order_by), max_results, page_token)

    def _search_runs(self, *args: Any, **kwargs: Any) -> tuple[list[Run], str | None]:
        """The same, as MLflow's base class wants it."""
        found = self.search_runs(*args, **kwargs)
        return list(found), found.token

    # -- params and tags ----------------------------------------------------------------------------------------

    def log_param(self, run_id: str, param: Param) -> None:
        """Log one param; the same value again is fine, another one is refused."""
        param = validation._validate_param(param.key, param.value)
        old = self.active(run_id).items("param").get(param.key)
        if old is None:
            require_values("params.value", [param])
            self.lake.write(pairs(RUN.name, run_id, "param", [param]), polled=True)
        elif old != param.value:
            raise invalid(
                f"Changing param values is not allowed. Param with key='{param.key}' was already logged with "
                f"value='{old}' for run ID='{run_id}'. Attempted logging new value '{param.value}'."
            )

    def set_tag(self, run_id: str, tag: RunTag) -> None:
        """Set one tag; `mlflow.runName` also renames the run."""
        tag = validation._validate_tag(tag.key, tag.value)
        self.active(run_id)
        self.lake.write(tag_events(run_id, [tag]), polled=True)

    def delete_tag(self, run_id: str, key: str) -> None:
        """Remove one tag."""
        if key not in self.active(run_id).items("tag"):
            raise not_found(f"No tag with name: {key} in run with id {run_id}")
        self.remove(run_id, "tag", key)

    def record_logged_model(self, run_id: str, mlflow_model: Any) -> None:
        """Note a model that was logged, in the run's tag `mlflow.log-model.history`."""
        from mlflow.models import Model

        if not isinstance(mlflow_model, Model):
            raise TypeError(f"Argument 'mlflow_model' should be mlflow.models.Model, got '{type(mlflow_model)}'")
        before = self.active(run_id).items("tag").get(MLFLOW_LOGGED_MODELS, "[]")
        value = json.dumps([*json.loads(before), mlflow_model.get_tags_dict()])
        validation._validate_tag(MLFLOW_LOGGED_MODELS, value)
        self.lake.write([Event(RUN.name, run_id, "tag", MLFLOW_LOGGED_MODELS, value)])

    # -- inputs and outputs -------------------------------------------------------------------------------------

    def log_inputs(self, run_id: str, datasets: list[DatasetInput] | None = None, models: list[LoggedModelInput] | None = None) -> None:
        """Note what a run read. A dataset that its experiment knows by name and digest stays as it was first described."""
        validation._validate_run_id(run_id)
        if datasets is not None:
            if not isinstance(datasets, list):
                raise TypeError(f"Argument 'datasets' should be a list, got '{type(datasets)}'")
            validation._validate_dataset_inputs(datasets)
        run = self.active(run_id)
        events = [Event(RUN.name, run_id, "model_input", model.model_id, "") for model in models or ()]
        if datasets:
            events += self._dataset_events(run, datasets)
        self.lake.write(events)

    def log_outputs(self, run_id: str, models: list[LoggedModelOutput]) -> None:
        """Note which logged models a run made, and at which step."""
        self.active(run_id)
        self.lake.write([Event(RUN.name, run_id, "model_output", model.model_id, str(int(model.step))) for model in models])

    def _dataset_events(self, run: Entity, datasets: list[DatasetInput]) -> list[Event]:
        if any(one.dataset is None for one in datasets):
            raise MlflowException("Dataset input must have a dataset associated with it.", INTERNAL_ERROR)
        experiment = self._experiments.find(run.attr("experiment_id") or "")
        known, mine = experiment.items("dataset"), run.items("dataset")
        events: dict[str, list[Event]] = {}
        for one in datasets:
            key, described = dataset_register(dict(one.dataset), {})
            if key in mine or key in events:
                continue
            first = json.loads(known.get(key, described))
            value = dataset_register(first, {tag.key: tag.value for tag in one.tags or ()}, len(mine) + len(events))[1]
            events[key] = [Event(RUN.name, run.id, "dataset", key, value)]
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
        return self._trash.ids(RUN.name, older_than)

    def _hard_delete_run(self, run_id: str) -> None:
        """Delete a run for good."""
        self._trash.purge(self.find(run_id))


def tag_events(run_id: str, tags: Sequence[RunTag]) -> list[Event]:
    """Events that set tags of a run; `mlflow.runName` also renames it."""
    events = pairs(RUN.name, run_id, "tag", (t for t in tags if t.key != MLFLOW_RUN_NAME or t.value))
    return events + [e._replace(field="attr", key="run_name") for e in events if e.key == MLFLOW_RUN_NAME]
