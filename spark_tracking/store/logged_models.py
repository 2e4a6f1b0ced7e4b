"""Logged models: MLflow 3's models as things of their own, with params, tags, a status and metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.entities import (
    LifecycleStage,
    LoggedModel,
    LoggedModelParameter,
    LoggedModelStatus,
    LoggedModelTag,
)
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.tracking import SEARCH_LOGGED_MODEL_MAX_RESULTS_DEFAULT
from mlflow.utils import validation
from mlflow.utils.name_utils import _generate_random_name
from mlflow.utils.search_utils import SearchLoggedModelsPaginationToken
from mlflow.utils.uri import append_to_uri_path

from spark_tracking.kinds import entities, filters, lake_sql
from spark_tracking.kinds.catalog import LOGGED_MODEL
from spark_tracking.kinds.state import ModelPoint
from spark_tracking.lake import Entity
from spark_tracking.store.experiments import Experiments
from spark_tracking.store.things import Home, Things, invalid, new_id, not_found, now, pairs, require_values, valid_offset
from spark_tracking.store.trash import Trash

_PARAM, _TAG = "logged_model_params.param_value", "logged_model_tags.tag_value"
_ALIASES = {
    "creation_time": "creation_timestamp_ms",
    "creation_timestamp": "creation_timestamp_ms",
    "last_updated_timestamp": "last_updated_timestamp_ms",
}
Order = Mapping[str, Any]


class LoggedModels(Things[LoggedModel]):
    """Logged models."""

    kind = LOGGED_MODEL
    missing = "Logged model with ID '{}' not found."

    def __init__(self, home: Home, experiments: Experiments, trash: Trash) -> None:
        super().__init__(home)
        self._experiments, self._trash = experiments, trash

    def entity(self, state: Entity) -> LoggedModel:
        return entities.logged_model(state)

    def create_logged_model(
        self,
        experiment_id: str,
        name: str | None = None,
        source_run_id: str | None = None,
        tags: list[LoggedModelTag] | None = None,
        params: list[LoggedModelParameter] | None = None,
        model_type: str | None = None,
    ) -> LoggedModel:
        """A new model of an active experiment, pending until it is finalized."""
        validation._validate_logged_model_name(name)
        experiment = self._experiments.active(experiment_id)
        require_values(_PARAM, params or ())
        require_values(_TAG, tags or ())
        model_id, time = f"m-{new_id()}", now()
        values: dict[str, Any] = {
            "created": time,
            "updated": time,
            "experiment_id": experiment.id,
            "name": name or _generate_random_name(),
            "model_type": model_type,
            "source_run_id": source_run_id,
            "status": LoggedModelStatus.PENDING.value,
            "lifecycle_stage": LifecycleStage.ACTIVE,
            "artifact_uri": append_to_uri_path(experiment.attr("artifact_location"), "models", model_id, "artifacts"),
        }
        events = self.made(model_id, values, tags or (), params or ())
        self.lake.write(events)
        return self.entity(self.folded(model_id, events))

    def get_logged_model(self, model_id: str, allow_deleted: bool = False) -> LoggedModel:
        """The model, unless it is in the trash."""
        model = self.find(model_id)
        if model.deleted and not allow_deleted:
            raise not_found(self.missing.format(model_id))
        return self.entity(self._trash.shown(model))

    def finalize_logged_model(self, model_id: str, status: LoggedModelStatus) -> LoggedModel:
        """Say that the model is ready, or failed."""
        self.set(self.find(model_id).id, status=LoggedModelStatus(status).value, updated=now())
        return self.entity(self.find(model_id))

    def log_logged_model_params(self, model_id: str, params: list[LoggedModelParameter]) -> None:
        """Add params; those of a model never change."""
        old = self.find(model_id).items("param")
        for param in params:
            if old.get(param.key, param.value) != param.value:
                raise invalid(
                    f"Changing param values is not allowed. Param with key='{param.key}' was already logged with "
                    f"value='{old[param.key]}' for logged model ID='{model_id}'. Attempted logging new value '{param.value}'."
                )
        require_values(_PARAM, params)
        self.lake.write(pairs(LOGGED_MODEL.name, model_id, "param", params))

    def set_logged_model_tags(self, model_id: str, tags: list[LoggedModelTag]) -> None:
        """Set tags."""
        self.find(model_id)
        require_values(_TAG, tags)
        self.set_tags(model_id, tags)

    def delete_logged_model_tag(self, model_id: str, key: str) -> None:
        """Remove one tag."""
        if key not in self.find(model_id).items("tag"):
            raise not_found(f"No tag with key {key!r} found for model with ID {model_id!r}.")
        self.remove(model_id, "tag", key)

    def delete_logged_model(self, model_id: str) -> None:
        """Move the model to the trash."""
        time = now()
        self.set(self.find(model_id).id, lifecycle_stage=LifecycleStage.DELETED, updated=time, deleted=time)

    def search_logged_models(
        self,
        experiment_ids: list[str],
        filter_string: str | None = None,
        datasets: list[dict[str, Any]] | None = None,
        max_results: int | None = None,
        order_by: list[dict[str, Any]] | None = None,
        page_token: str | None = None,
    ) -> PagedList[LoggedModel]:
        """One page of the models that satisfy the filter, the newest first unless said otherwise."""
        if datasets and not all(d.get("dataset_name") for d in datasets):
            raise invalid("`dataset_name` in the `datasets` clause must be specified.")
        offset = 0
        if page_token:
            try:
                before = SearchLoggedModelsPaginationToken.decode(page_token)
            except Exception as error:  # not base64, not UTF-8, not an object
                raise invalid(f"Invalid page token '{page_token[:40]}'. Expected one that the last page came with.") from error
            before.validate(experiment_ids, filter_string, order_by)
            offset = valid_offset(before.offset)
        size = max_results or SEARCH_LOGGED_MODEL_MAX_RESULTS_DEFAULT
        where = lake_sql.all_of(
            "lifecycle_stage != 'deleted'",
            lake_sql.one_of("experiment_id", map(filters.experiment_id, experiment_ids)),
            lake_sql.logged_models_predicate(filter_string, datasets),
        )
        found = self._ordered_models(where, order_by or [], size + 1, offset)
        token = None
        if len(found) > size:
            token = SearchLoggedModelsPaginationToken(
                offset=offset + size, experiment_ids=experiment_ids, filter_string=filter_string, order_by=order_by
            ).encode()
        return PagedList([self.entity(model) for model in found[:size]], token)

    def _get_deleted_logged_models(self, older_than: int = 0) -> list[str]:
        """Ids of the models that have been in the trash for at least `older_than` ms (for `mlflow gc`)."""
        return self._trash.ids(LOGGED_MODEL.name, older_than)

    def _hard_delete_logged_model(self, model_id: str) -> None:
        """Delete a model for good (for `mlflow gc`)."""
        self._trash.purge(self.find(model_id))

    def _ordered_models(self, where: str, order_by: Sequence[Order], limit: int, offset: int) -> list[Entity]:
        """By columns in SQL; by metrics, of which only the latest on a dataset counts, here."""
        terms, by_metric = _order_terms(order_by)
        if not by_metric:
            return self.lake.search(LOGGED_MODEL.name, where, terms, limit, offset)
        models = self.lake.search(LOGGED_MODEL.name, where, _order_terms(())[0])
        for one in reversed(order_by):  # sorting is stable: the last key first
            values = {m.id: _order_value(m, one) for m in models}
            models.sort(key=lambda m: _sort_key(values[m.id]), reverse=not one.get("ascending", True))
            models.sort(key=lambda m: values[m.id] is None)
        return models[offset : offset + limit]


def _order_terms(order_by: Sequence[Order]) -> tuple[list[str], bool]:
    terms, seen, by_metric = [], set(), False
    for one in order_by:
        field = one.get("field_name") or ""
        if "." in field:
            if field.split(".", 1)[0] != "metrics":
                raise invalid(f"Invalid order by field name: {field}. Only metrics are supported.")
            by_metric = True
            continue
        name = _ALIASES.get(field, field)
        if name not in filters.LOGGED_MODEL_ATTRIBUTES:
            raise invalid(f"Invalid order by field name: {field}")
        seen.add(name)
        terms.append(f"{filters.LOGGED_MODEL_ATTRIBUTES[name]} {'ASC' if one.get('ascending', True) else 'DESC'} NULLS LAST")
    ties = {"creation_timestamp_ms": "create_time DESC", "model_id": "model_id"}
    return [*terms, *(term for name, term in ties.items() if name not in seen)], by_metric


def _order_value(model: Entity, order: Order) -> Any:
    field: str = order["field_name"]
    if "." not in field:
        name: str = _ALIASES.get(field, field)
        if name == "model_id":
            return model.id
        if name.endswith("_ms"):
            return model.number("created" if name.startswith("creation") else "updated")
        return model.attr(filters.LOGGED_MODEL_ATTRIBUTES[name])
    wanted = (order.get("dataset_name"), order.get("dataset_digest"))

    def counts(point: ModelPoint) -> bool:
        mine = (point.dataset_name, point.dataset_digest)
        return point.name == field.split(".", 1)[1] and all(not w or w == m for w, m in zip(wanted, mine))

    points = sorted((p for p in model.points if counts(p)), key=lambda p: p.run_id)
    latest = max(points, key=lambda p: (p.time, p.step), default=None)
    return None if latest is None else model.points[latest]


def _sort_key(value: Any) -> tuple[bool, Any]:
    """Orders values of one column; what is missing is put last afterwards."""
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return (not missing, 0 if missing else value)
