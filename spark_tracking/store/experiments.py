"""Experiments: names are unique (also among deleted ones), ids are consecutive integers, deletion cascades to runs."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow.entities import Experiment, ExperimentTag, LifecycleStage, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE, INVALID_STATE, RESOURCE_ALREADY_EXISTS
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.tracking import SEARCH_MAX_RESULTS_DEFAULT, SEARCH_MAX_RESULTS_THRESHOLD
from mlflow.utils.uri import append_to_uri_path, resolve_uri_if_local
from mlflow.utils.validation import (
    _validate_experiment_artifact_location_length,
    _validate_experiment_name,
    _validate_experiment_tag,
)

from spark_tracking.kinds import entities, filters, lake_sql
from spark_tracking.kinds.catalog import EXPERIMENT
from spark_tracking.lake import Entity, Event
from spark_tracking.store.base import LakeBacked, attrs, invalid, not_found, now, offset_of, page, pairs
from spark_tracking.store.unsupported import NotKept

KIND = "experiment"
_LAST = "last_id"
_DEMO = "MLflow Demo"
_INSTEAD = "Run that demo on an MLflow server with an SQL backend; for an experiment of your own choose another name."


class Experiments(LakeBacked):
    """The part of the tracking store that keeps experiments."""

    DEFAULT_EXPERIMENT_ID = "0"

    def create_experiment(self, name: str, artifact_location: str | None = None, tags: Sequence[ExperimentTag] | None = None) -> str:
        """A new experiment's id."""
        _validate_experiment_name(name)
        if artifact_location:
            artifact_location = resolve_uri_if_local(artifact_location)
            _validate_experiment_artifact_location_length(artifact_location)
        for tag in tags or ():
            _validate_experiment_tag(tag.key, tag.value)
        if name == _DEMO:
            raise NotKept(f"'{name}' is the experiment of MLflow's own demo, which is made of traces, and a lake keeps none. {_INSTEAD}")
        created: list[str] = []

        def decide() -> list[Event]:
            if self._experiment_named(name) is not None:
                raise MlflowException(f"Experiment(name={name}) already exists.", RESOURCE_ALREADY_EXISTS)
            id, time = self._next_experiment_id(), now()
            created[:] = [id]
            location = artifact_location or append_to_uri_path(self.artifact_root, id)
            values = {"created": time, "updated": time, "name": name, "artifact_location": location}
            return [
                *attrs(KIND, id, **values, lifecycle_stage=LifecycleStage.ACTIVE),
                *pairs(KIND, id, "tag", tags or ()),
                *attrs(KIND, self.DEFAULT_EXPERIMENT_ID, **{_LAST: id}),
            ]

        self.lake.commit(decide)
        return created[0]

    def get_experiment(self, experiment_id: str) -> Experiment:
        """The experiment, deleted or not."""
        return entities.experiment(self._experiment(experiment_id))

    def get_experiment_by_name(self, experiment_name: str) -> Experiment | None:
        """The experiment with that name, deleted or not."""
        found = self._experiment_named(experiment_name)
        return None if found is None else entities.experiment(found)

    def search_experiments(
        self,
        view_type: int = ViewType.ACTIVE_ONLY,
        max_results: int = SEARCH_MAX_RESULTS_DEFAULT,
        filter_string: str | None = None,
        order_by: Sequence[str] | None = None,
        page_token: str | None = None,
    ) -> PagedList[Experiment]:
        """One page of the experiments that satisfy the filter."""
        check_max_results(max_results)
        where = lake_sql.all_of(lake_sql.in_stages(view_type), lake_sql.predicate(filters.parse(EXPERIMENT, filter_string)))
        offset = offset_of(page_token)
        found = self.lake.search(KIND, where, lake_sql.experiments_order(order_by), max_results + 1, offset)
        return page(found, offset, max_results, entities.experiment)

    def delete_experiment(self, experiment_id: str) -> None:
        """Move the experiment and all of its runs to the trash."""
        experiment = self._experiment(experiment_id, LifecycleStage.ACTIVE)
        self._move_experiment(experiment, LifecycleStage.DELETED)

    def restore_experiment(self, experiment_id: str) -> None:
        """Take the experiment and all of its runs out of the trash."""
        experiment = self._experiment(experiment_id, LifecycleStage.DELETED)
        self._move_experiment(experiment, LifecycleStage.ACTIVE)

    def rename_experiment(self, experiment_id: str, new_name: str) -> None:
        """Give an active experiment another name."""
        _validate_experiment_name(new_name)

        def decide() -> list[Event]:
            experiment = self._experiment(experiment_id)
            if experiment.deleted:
                raise MlflowException("Cannot rename a non-active experiment.", INVALID_STATE)
            taken = self._experiment_named(new_name)
            if taken is not None and taken.id != experiment.id:
                raise MlflowException(f"Experiment(name={new_name}) already exists.", RESOURCE_ALREADY_EXISTS)
            return attrs(KIND, experiment.id, name=new_name, updated=now())

        self.lake.commit(decide)

    def set_experiment_tag(self, experiment_id: str, tag: ExperimentTag) -> None:
        """Set one tag of an active experiment."""
        _validate_experiment_tag(tag.key, tag.value)
        experiment = self._active_experiment(experiment_id)
        self.lake.write(pairs(KIND, experiment.id, "tag", [tag]))

    def delete_experiment_tag(self, experiment_id: str, key: str) -> None:
        """Remove one tag of an active experiment."""
        experiment = self._active_experiment(experiment_id)
        if key not in experiment.items("tag"):
            raise not_found(f"No tag with name: {key} in experiment with id {experiment_id}")
        self.lake.write([Event(KIND, experiment.id, "tag", key, None)])

    def filter_active_experiment_ids(self, experiment_ids: Sequence[str]) -> list[str]:
        """Those of the ids whose experiment is there and not deleted."""
        found = self.lake.get_many(KIND, [filters.experiment_id(id) for id in experiment_ids])
        return [id for id in map(filters.experiment_id, experiment_ids) if id in found and not found[id].deleted]

    def _hard_delete_experiment(self, experiment_id: str) -> None:
        """Delete a trashed experiment for good, with its runs and logged models (for `mlflow gc`)."""
        experiment = self._experiment(experiment_id, LifecycleStage.DELETED)
        self.lake.purge("run", self._ids_in_experiment("run", experiment.id))
        self.lake.purge("logged_model", self._ids_in_experiment("logged_model", experiment.id))
        self.lake.purge(KIND, [experiment.id])

    def _experiment(self, experiment_id: str, stage: str | None = None) -> Entity:
        id = filters.experiment_id(experiment_id or self.DEFAULT_EXPERIMENT_ID)
        experiment = self.lake.get(KIND, id)
        if experiment is None or (stage and experiment.attr("lifecycle_stage") != stage):
            raise not_found(f"No Experiment with id={id} exists")
        return experiment

    def _active_experiment(self, experiment_id: str) -> Entity:
        if experiment_id == "":  # over HTTP: not said. Only reads fall back on the Default experiment
            raise MlflowException("An experiment_id is missing; that of the Default experiment is '0'.", BAD_REQUEST)
        experiment = self._experiment(experiment_id)
        if experiment.deleted:
            raise MlflowException(
                f"The experiment {experiment.id} must be in the 'active' state. Current state is deleted.",
                INVALID_PARAMETER_VALUE,
            )
        return experiment

    def _experiment_named(self, name: str) -> Entity | None:
        return next(iter(self.lake.find(KIND, "name", name)), None)

    def _next_experiment_id(self) -> str:
        default = self.lake.get(KIND, self.DEFAULT_EXPERIMENT_ID)
        last = default.number(_LAST) if default else None
        if last is None:  # someone deleted the default experiment for good
            ids = self.lake.scan("experiments_latest", ["experiment_id"])
            last = max((int(id) for batch in ids for id in batch.column(0).to_pylist()), default=0)
        return str(last + 1)

    def _ids_in_experiment(self, kind: str, experiment_id: str) -> list[str]:
        table, key = {"run": ("runs_latest", "run_id"), "logged_model": ("logged_models_latest", "model_id")}[kind]
        rows = self.lake.scan(table, [key], lake_sql.one_of("experiment_id", [experiment_id]))
        return [id for batch in rows for id in batch.column(0).to_pylist()]

    def _move_experiment(self, experiment: Entity, stage: str) -> None:
        time = now()
        deleted = time if stage == LifecycleStage.DELETED else None
        events = attrs(KIND, experiment.id, lifecycle_stage=stage, updated=time, deleted=deleted)
        for run_id in self._ids_in_experiment("run", experiment.id):
            events += attrs("run", run_id, lifecycle_stage=stage, deleted=deleted)
        self.lake.write(events)


def check_max_results(max_results: int | None, optional: bool = False) -> None:
    """Refuse a page size that MLflow's SQL store refuses.

    Raises:
        MlflowException: it is not a positive number, or above 50,000.
    """
    if max_results is None and optional:
        return
    prefix = f"Invalid value {max_results} for parameter 'max_results' supplied. It must be"
    if max_results is None or max_results < 1:
        raise invalid(f"{prefix} a positive integer")
    if max_results > SEARCH_MAX_RESULTS_THRESHOLD:
        raise invalid(f"{prefix} at most {SEARCH_MAX_RESULTS_THRESHOLD}")
