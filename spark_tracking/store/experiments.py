"""Experiments: names are unique (also among deleted ones), ids are consecutive integers, deletion cascades to runs."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow.entities import Experiment, ExperimentTag, LifecycleStage, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_STATE, RESOURCE_ALREADY_EXISTS
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.tracking import SEARCH_MAX_RESULTS_DEFAULT, SEARCH_MAX_RESULTS_THRESHOLD
from mlflow.utils import validation
from mlflow.utils.uri import append_to_uri_path, resolve_uri_if_local

from spark_tracking.kinds import entities, filters, lake_sql
from spark_tracking.kinds.catalog import EXPERIMENT, RUN
from spark_tracking.lake import Entity, Event
from spark_tracking.store.things import Home, Things, attrs, ids_in, invalid, not_found, now
from spark_tracking.store.trash import purge_experiment
from spark_tracking.store.unsupported import NotKept

DEFAULT_ID = "0"
_LAST = "last_id"
_DEMO = "MLflow Demo"
_INSTEAD = "Run that demo on an MLflow server with an SQL backend; for an experiment of your own choose another name."


class Experiments(Things[Experiment]):
    """Experiments. `artifact_root`: where their artifacts go by default."""

    kind = EXPERIMENT
    missing = "No Experiment with id={} exists"

    def __init__(self, home: Home, artifact_root: str) -> None:
        super().__init__(home)
        self._artifact_root = artifact_root

    def entity(self, state: Entity) -> Experiment:
        return entities.experiment(state)

    def create_experiment(self, name: str, artifact_location: str | None = None, tags: Sequence[ExperimentTag] | None = None) -> str:
        """A new experiment's id."""
        validation._validate_experiment_name(name)
        if artifact_location:
            artifact_location = resolve_uri_if_local(artifact_location)
            validation._validate_experiment_artifact_location_length(artifact_location)
        for tag in tags or ():
            validation._validate_experiment_tag(tag.key, tag.value)
        if name == _DEMO:
            raise NotKept(f"'{name}' is the experiment of MLflow's own demo, which is made of traces, and a lake keeps none. {_INSTEAD}")
        created: list[str] = []

        def decide() -> list[Event]:
            self._require_free(name)
            id, time = self._next_id(), now()
            created[:] = [id]
            location = artifact_location or append_to_uri_path(self._artifact_root, id)
            values = {"created": time, "updated": time, "name": name, "artifact_location": location}
            events = self.made(id, values | {"lifecycle_stage": LifecycleStage.ACTIVE}, tags or ())
            return events + self.attrs(DEFAULT_ID, **{_LAST: id})

        self.lake.commit(decide)
        return created[0]

    def get_experiment(self, experiment_id: str) -> Experiment:
        """The experiment, deleted or not."""
        return self.entity(self.find(experiment_id))

    def get_experiment_by_name(self, experiment_name: str) -> Experiment | None:
        """The experiment with that name, deleted or not."""
        found = self._named(experiment_name)
        return None if found is None else self.entity(found)

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
        return self.page(where, lake_sql.experiments_order(order_by), max_results, page_token)

    def delete_experiment(self, experiment_id: str) -> None:
        """Move the experiment and all of its runs to the trash."""
        self._move(experiment_id, LifecycleStage.ACTIVE, LifecycleStage.DELETED)

    def restore_experiment(self, experiment_id: str) -> None:
        """Take the experiment and all of its runs out of the trash."""
        self._move(experiment_id, LifecycleStage.DELETED, LifecycleStage.ACTIVE)

    def rename_experiment(self, experiment_id: str, new_name: str) -> None:
        """Give an active experiment another name."""
        validation._validate_experiment_name(new_name)

        def decide() -> list[Event]:
            experiment = self.find(experiment_id)
            if experiment.deleted:
                raise MlflowException("Cannot rename a non-active experiment.", INVALID_STATE)
            self._require_free(new_name, experiment.id)
            return self.attrs(experiment.id, name=new_name, updated=now())

        self.lake.commit(decide)

    def set_experiment_tag(self, experiment_id: str, tag: ExperimentTag) -> None:
        """Set one tag of an active experiment."""
        validation._validate_experiment_tag(tag.key, tag.value)
        self.set_tags(self.active(experiment_id).id, [tag])

    def delete_experiment_tag(self, experiment_id: str, key: str) -> None:
        """Remove one tag of an active experiment."""
        experiment = self.active(experiment_id)
        if key not in experiment.items("tag"):
            raise not_found(f"No tag with name: {key} in experiment with id {experiment_id}")
        self.remove(experiment.id, "tag", key)

    def filter_active_experiment_ids(self, experiment_ids: Sequence[str]) -> list[str]:
        """Those of the ids whose experiment is there and not deleted."""
        found = self.lake.get_many(EXPERIMENT.name, [filters.experiment_id(id) for id in experiment_ids])
        return [id for id in map(filters.experiment_id, experiment_ids) if id in found and not found[id].deleted]

    def _hard_delete_experiment(self, experiment_id: str) -> None:
        """Delete a trashed experiment for good, with its runs and logged models (for `mlflow gc`)."""
        purge_experiment(self.lake, self._in_stage(experiment_id, LifecycleStage.DELETED).id)

    def find(self, id: str, points: bool = True) -> Entity:
        return super().find(filters.experiment_id(id or DEFAULT_ID), points)

    def active(self, id: str) -> Entity:
        if id == "":  # over HTTP: not said. Only reads fall back on the Default experiment
            raise MlflowException("An experiment_id is missing; that of the Default experiment is '0'.", BAD_REQUEST)
        return super().active(id)

    def _in_stage(self, experiment_id: str, stage: str) -> Entity:
        experiment = self.find(experiment_id)
        if experiment.attr("lifecycle_stage") != stage:
            raise not_found(self.missing.format(experiment.id))
        return experiment

    def _named(self, name: str) -> Entity | None:
        return next(iter(self.lake.find(EXPERIMENT.name, "name", name)), None)

    def _require_free(self, name: str, but_for: str = "") -> None:
        taken = self._named(name)
        if taken is not None and taken.id != but_for:
            raise MlflowException(f"Experiment(name={name}) already exists.", RESOURCE_ALREADY_EXISTS)

    def _next_id(self) -> str:
        default = self.lake.get(EXPERIMENT.name, DEFAULT_ID)
        last = default.number(_LAST) if default else None
        if last is None:  # someone deleted the default experiment for good
            ids = self.lake.scan(EXPERIMENT.table, [EXPERIMENT.key])
            last = max((int(id) for batch in ids for id in batch.column(0).to_pylist()), default=0)
        return str(last + 1)

    def _move(self, experiment_id: str, before: str, stage: str) -> None:
        id, time = self._in_stage(experiment_id, before).id, now()
        deleted = time if stage == LifecycleStage.DELETED else None
        events = self.attrs(id, lifecycle_stage=stage, updated=time, deleted=deleted)
        for run_id in ids_in(self.lake, RUN, id):
            events += attrs(RUN.name, run_id, lifecycle_stage=stage, deleted=deleted)
        self.lake.write(events)


def check_max_results(max_results: int | None, optional: bool = False) -> None:
    """Refuse a page size that MLflow's SQL store refuses. Raises MlflowException: it is not a positive number, or above 50,000."""
    if max_results is None and optional:
        return
    prefix = f"Invalid value {max_results} for parameter 'max_results' supplied. It must be"
    if max_results is None or max_results < 1:
        raise invalid(f"{prefix} a positive integer")
    if max_results > SEARCH_MAX_RESULTS_THRESHOLD:
        raise invalid(f"{prefix} at most {SEARCH_MAX_RESULTS_THRESHOLD}")
