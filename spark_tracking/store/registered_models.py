"""Registered models: unique names, tags, search, renaming and deletion with all versions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlflow.entities.model_registry import RegisteredModel, RegisteredModelTag
from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.model_registry import SEARCH_REGISTERED_MODEL_MAX_RESULTS_DEFAULT, SEARCH_REGISTERED_MODEL_MAX_RESULTS_THRESHOLD
from mlflow.utils import validation

from spark_tracking.kinds import entities, filters, lake_sql
from spark_tracking.kinds.catalog import MODEL_VERSION, REGISTERED_MODEL
from spark_tracking.kinds.shapes import split_version_id, version_id
from spark_tracking.lake import Entity, Event
from spark_tracking.store.things import Things, attrs, now, require_at_most


class RegisteredModels(Things[RegisteredModel]):
    """Registered models."""

    kind = REGISTERED_MODEL
    missing = "Registered Model with name={} not found"

    def create_registered_model(
        self,
        name: str,
        tags: Sequence[RegisteredModelTag] | None = None,
        description: str | None = None,
        deployment_job_id: str | None = None,
    ) -> RegisteredModel:
        """A new registered model."""
        validation._validate_model_name(name)
        for tag in tags or ():
            validation._validate_registered_model_tag(tag.key, tag.value)
        events: list[Event] = []

        def decide() -> list[Event]:
            existing = self.lake.get(REGISTERED_MODEL.name, name)
            if existing is not None:
                raise _taken(name, _is_prompt(existing.items("tag")), _is_prompt({t.key: t.value for t in tags or ()}))
            time = now()
            events[:] = self.made(name, {"created": time, "updated": time, "description": description}, tags or ())
            return events

        self.lake.commit(decide)
        return entities.registered_model(self.folded(name, events), [])

    def update_registered_model(self, name: str, description: str | None, deployment_job_id: str | None = None) -> RegisteredModel:
        """Set the description."""
        self.set(self.find(name).id, description=description, updated=now())
        return self.get_registered_model(name)

    def rename_registered_model(self, name: str, new_name: str) -> RegisteredModel:
        """Give the model and all of its versions another name."""
        validation._validate_model_renaming(new_name)

        def decide() -> list[Event]:
            model, time = self.find(name), now()
            if new_name != name and self.lake.get(REGISTERED_MODEL.name, new_name) is not None:
                raise MlflowException(f"Registered Model (name={new_name}) already exists.", RESOURCE_ALREADY_EXISTS)
            events: list[Event] = []
            for entity in (model, *self.versions(model, deleted=True)):
                renamed = new_name if entity is model else version_id(new_name, split_version_id(entity.id)[1])
                if new_name != name:
                    events += [event._replace(id=renamed) for event in entity.events()]
                    events.append(Event(entity.kind, entity.id, "purge", "", None))
                events += attrs(entity.kind, renamed, updated=time)
            return events

        self.lake.commit(decide)
        return self.get_registered_model(new_name)

    def delete_registered_model(self, name: str) -> None:
        """Delete the model and all of its versions for good; the name is free again."""

        def decide() -> list[Event]:
            model = self.find(name)
            return [Event(e.kind, e.id, "purge", "", None) for e in (model, *self.versions(model, deleted=True))]

        self.lake.commit(decide)

    def get_registered_model(self, name: str) -> RegisteredModel:
        """The model with the latest version of each stage."""
        model = self.find(name)
        return self._with_latest(model, self.versions(model))

    def search_registered_models(
        self,
        filter_string: str | None = None,
        max_results: int = SEARCH_REGISTERED_MODEL_MAX_RESULTS_DEFAULT,
        order_by: Sequence[str] | None = None,
        page_token: str | None = None,
    ) -> PagedList[RegisteredModel]:
        """One page of the models that satisfy the filter, by name unless said otherwise."""
        require_at_most(SEARCH_REGISTERED_MODEL_MAX_RESULTS_THRESHOLD, max_results)
        where, order = lake_sql.predicate(filters.parse(REGISTERED_MODEL, filter_string)), lake_sql.registered_models_order(order_by)
        return self.page(where, order, max_results, page_token, self._with_their_latest)

    def _with_their_latest(self, models: Sequence[Entity]) -> list[RegisteredModel]:
        versions: dict[str, list[Entity]] = {model.id: [] for model in models}
        for version in self.lake.search(MODEL_VERSION.name, lake_sql.one_of("name", versions)) if versions else ():
            versions[split_version_id(version.id)[0]].append(version)
        return [self._with_latest(model, versions[model.id]) for model in models]

    def _with_latest(self, model: Entity, versions: Iterable[Entity]) -> RegisteredModel:
        return entities.registered_model(model, [entities.model_version(version, {}) for version in latest_of_stages(versions)])

    def set_registered_model_tag(self, name: str, tag: RegisteredModelTag) -> None:
        """Set one tag."""
        validation._validate_model_name(name)
        validation._validate_registered_model_tag(tag.key, tag.value)
        self.set_tags(self.find(name).id, [tag])

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        """Remove one tag, if it is there."""
        validation._validate_model_name(name)
        validation._validate_tag_name(key)
        self.remove(self.find(name).id, "tag", key)

    def find(self, id: str, points: bool = True) -> Entity:
        validation._validate_model_name(id)
        return super().find(id, points)

    def versions(self, model: Entity, deleted: bool = False) -> list[Entity]:
        """All versions, by number: their ids are known, so nothing is searched."""
        numbers = range(1, (model.number("last_version") or 0) + 1)
        found = self.lake.get_many(MODEL_VERSION.name, [version_id(model.id, n) for n in numbers]).values()
        return [v for v in found if deleted or v.attr("current_stage") != STAGE_DELETED_INTERNAL]


def latest_of_stages(versions: Iterable[Entity]) -> list[Entity]:
    """Of each stage, the version with the highest number."""
    by_number = sorted(versions, key=lambda v: split_version_id(v.id)[1])
    latest = {v.attr("current_stage"): v for v in by_number}
    latest.pop(STAGE_DELETED_INTERNAL, None)
    return list(latest.values())


def _is_prompt(tags: dict[str, str]) -> bool:
    return tags.get(filters.PROMPT_TAG, "").lower() == "true"


def _taken(name: str, is_prompt: bool, as_prompt: bool) -> MlflowException:
    old, new = ("Prompt" if prompt else "Registered Model" for prompt in (is_prompt, as_prompt))
    if old == new:
        return MlflowException(f"{new} (name={name}) already exists.", RESOURCE_ALREADY_EXISTS)
    return MlflowException(
        f"Tried to create a {new.lower()} with name {name!r}, but the name is already taken by a {old.lower()}. "
        "MLflow does not allow creating a model and a prompt with the same name.",
        RESOURCE_ALREADY_EXISTS,
    )
