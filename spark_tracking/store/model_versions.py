"""Model versions: numbers given once, sources resolved, stages, tags, aliases."""

from __future__ import annotations

import urllib.parse
from collections.abc import Sequence
from typing import Any

from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag
from mlflow.entities.model_registry import model_version_stages as stages_of
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.store.artifact.utils.models import _parse_model_uri
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.model_registry import SEARCH_MODEL_VERSION_MAX_RESULTS_DEFAULT, SEARCH_MODEL_VERSION_MAX_RESULTS_THRESHOLD
from mlflow.utils import validation

from spark_tracking.address import LakeUri
from spark_tracking.errors import InvalidUri
from spark_tracking.kinds import entities, filters, lake_sql
from spark_tracking.kinds.catalog import MODEL_VERSION, REGISTERED_MODEL
from spark_tracking.kinds.shapes import version_id
from spark_tracking.lake import Entity, Event
from spark_tracking.store.registered_models import RegisteredModels, latest_of_stages
from spark_tracking.store.things import Home, Things, invalid, not_found, now, require_at_most

_LATEST = "latest"
# the first MLflows of 3.x refuse 'latest' and 'v1' with the rest
_validate_alias_is_free_to_use = getattr(validation, "_validate_model_alias_name_reserved", validation._validate_model_alias_name)
_REDACTED = {
    "description": None,
    "created_by": None,
    "source": "REDACTED-SOURCE-PATH",
    "run_id": "REDACTED-RUN-ID",
    "run_link": "REDACTED-RUN-LINK",
    "status_message": None,
}
"""What a deleted version keeps, as in MLflow's SQL store."""


class ModelVersions(Things[ModelVersion]):
    """Model versions, and the aliases that point to them.

    Args:
        tracking_uri: of the server that logged models are on, where it is not this lake.
    """

    kind = MODEL_VERSION

    def __init__(self, home: Home, models: RegisteredModels, tracking_uri: str | None) -> None:
        super().__init__(home)
        self._models, self._tracking_uri = models, tracking_uri

    def entity(self, state: Entity) -> ModelVersion:
        return entities.model_version(state, {})

    def create_model_version(
        self,
        name: str,
        source: str,
        run_id: str | None = None,
        tags: Sequence[ModelVersionTag] | None = None,
        run_link: str | None = None,
        description: str | None = None,
        local_model_path: str | None = None,
        model_id: str | None = None,
    ) -> ModelVersion:
        """The next version of a registered model."""
        validation._validate_model_name(name)
        for tag in tags or ():
            validation._validate_model_version_tag(tag.key, tag.value)
        storage, run_id = self._resolve(source, run_id)
        if not run_id and model_id:
            run_id = self._logged_model(model_id).source_run_id
        created: list[ModelVersion] = []

        def decide() -> list[Event]:
            model, time = self._models.find(name), now()
            number = (model.number("last_version") or 0) + 1
            id = version_id(name, number)
            values: dict[str, Any] = {
                "created": time,
                "updated": time,
                "description": description,
                "current_stage": stages_of.STAGE_NONE,
                "status": "READY",
                "source": source,
                "storage_location": storage,
                "run_id": run_id,
                "run_link": run_link,
                "model_id": model_id,
            }
            events = self.made(id, values, tags or ())
            created[:] = [entities.model_version(self.folded(id, events), model.items("alias"))]
            return events + self._models.attrs(name, last_version=number, updated=time)

        self.lake.commit(decide)
        return created[0]

    def update_model_version(self, name: str, version: int | str, description: str | None = None) -> ModelVersion:
        """Set the description."""
        self.set(self._version(name, version).id, description=description, updated=now())
        return self.get_model_version(name, version)

    def transition_model_version_stage(self, name: str, version: int | str, stage: str, archive_existing_versions: bool) -> ModelVersion:
        """Move a version to a stage, and maybe the versions that are there to 'Archived'."""
        target = stages_of.get_canonical_stage(stage)
        if archive_existing_versions and target not in stages_of.DEFAULT_STAGES_FOR_GET_LATEST_VERSIONS:
            raise MlflowException(
                f"Model version transition cannot archive existing model versions because '{stage}' is not an Active stage. "
                f"Valid stages are {stages_of.DEFAULT_STAGES_FOR_GET_LATEST_VERSIONS}"
            )
        found, time = self._version(name, version), now()
        events = self.attrs(found.id, current_stage=target, updated=time) + self._models.attrs(name, updated=time)
        if archive_existing_versions:
            for other in self._models.versions(self._models.find(name)):
                if other.id != found.id and other.attr("current_stage") == target:
                    events += self.attrs(other.id, current_stage=stages_of.STAGE_ARCHIVED, updated=time)
        self.lake.write(events)
        return self.get_model_version(name, version)

    def delete_model_version(self, name: str, version: int | str) -> None:
        """Delete a version, for good; its number stays taken, its aliases go."""
        number = _number(version)
        found, model, time = self._version(name, number), self._models.find(name), now()
        events = [
            *self.attrs(found.id, current_stage=stages_of.STAGE_DELETED_INTERNAL, updated=time, **_REDACTED),
            *self._models.attrs(name, updated=time),
            *(Event(REGISTERED_MODEL.name, name, "alias", alias, None) for alias, v in model.items("alias").items() if int(v) == number),
        ]
        self.lake.write(events)

    def get_model_version(self, name: str, version: int | str) -> ModelVersion:
        """The version."""
        found = self._version(name, version)
        return entities.model_version(found, self._models.find(name).items("alias"))

    def get_model_version_download_uri(self, name: str, version: int | str) -> str:
        """Where the version's files lie."""
        found = self._version(name, version)
        return found.attr("storage_location") or found.attr("source") or ""

    def search_model_versions(
        self,
        filter_string: str | None = None,
        max_results: int = SEARCH_MODEL_VERSION_MAX_RESULTS_DEFAULT,
        order_by: Sequence[str] | None = None,
        page_token: str | None = None,
    ) -> PagedList[ModelVersion]:
        """One page of the versions that satisfy the filter, the last updated first unless said otherwise."""
        if not isinstance(max_results, int) or max_results < 1:
            raise invalid(f"Invalid value for max_results. It must be a positive integer, but got {max_results}")
        require_at_most(SEARCH_MODEL_VERSION_MAX_RESULTS_THRESHOLD, max_results)
        where, order = lake_sql.predicate(filters.parse(MODEL_VERSION, filter_string)), lake_sql.model_versions_order(order_by)
        return self.page(where, order, max_results, page_token)

    def get_latest_versions(self, name: str, stages: Sequence[str] | None = None) -> list[ModelVersion]:
        """The latest version of each stage, or of these stages."""
        model = self._models.find(name)
        wanted = {stages_of.get_canonical_stage(stage) for stage in stages or stages_of.ALL_STAGES}
        latest = latest_of_stages(self._models.versions(model))
        return [entities.model_version(v, model.items("alias")) for v in latest if v.attr("current_stage") in wanted]

    # -- tags and aliases ---------------------------------------------------------------------------------------

    def set_model_version_tag(self, name: str, version: int | str, tag: ModelVersionTag) -> None:
        """Set one tag."""
        validation._validate_model_name(name)
        validation._validate_model_version(version)
        validation._validate_model_version_tag(tag.key, tag.value)
        self.set_tags(self._version(name, version).id, [tag])

    def delete_model_version_tag(self, name: str, version: int | str, key: str) -> None:
        """Remove one tag, if it is there."""
        validation._validate_model_name(name)
        validation._validate_model_version(version)
        validation._validate_tag_name(key)
        self.remove(self._version(name, version).id, "tag", key)

    def set_registered_model_alias(self, name: str, alias: str, version: int | str) -> None:
        """Let an alias point to a version."""
        validation._validate_model_name(name)
        validation._validate_model_alias_name(alias)
        _validate_alias_is_free_to_use(alias)
        number = _number(version)
        self._version(name, number)
        self.lake.write([Event(REGISTERED_MODEL.name, name, "alias", alias, str(number))])

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        """Remove an alias, if it is there."""
        validation._validate_model_name(name)
        validation._validate_model_alias_name(alias)
        self._models.remove(self._models.find(name).id, "alias", alias)

    def get_model_version_by_alias(self, name: str, alias: str) -> ModelVersion:
        """The version that an alias points to; 'latest' is the one with the highest number."""
        validation._validate_model_name(name)
        validation._validate_model_alias_name(alias)
        if alias.lower() == _LATEST:
            versions = self.get_latest_versions(name)
            if not versions:
                raise not_found(f"Latest version not found for model {name}.")
            return max(versions, key=lambda version: int(version.version))
        version = self._models.find(name).items("alias").get(alias)
        if version is None:
            raise invalid(f"Registered model alias {alias} not found.")
        return self.get_model_version(name, version)

    def _await_model_version_creation(self, mv: ModelVersion, await_creation_for: int | None) -> None:
        """A version is ready when it is created."""

    # -- what they build on -------------------------------------------------------------------------------------

    def _version(self, name: str, version: int | str) -> Entity:
        validation._validate_model_name(name)
        number = _number(version)
        found = self.lake.get(MODEL_VERSION.name, version_id(name, number))
        if found is None or found.attr("current_stage") == stages_of.STAGE_DELETED_INTERNAL:
            raise not_found(f"Model Version (name={name}, version={number}) not found")
        return found

    def _resolve(self, source: str, run_id: str | None) -> tuple[str, str | None]:
        """Where the files of a source lie, and the run that it came from, if that is known."""
        if urllib.parse.urlparse(source).scheme != "models":
            return source, run_id
        parsed: Any = _parse_model_uri(source)
        try:
            if parsed.model_id is None:
                return self.get_model_version_download_uri(parsed.name, parsed.version), run_id
            model = self._logged_model(parsed.model_id)
            return model.artifact_location, run_id or model.source_run_id
        except Exception as error:
            raise MlflowException(f"Unable to fetch model from model URI source artifact location '{source}'.Error: {error}") from error

    def _logged_model(self, model_id: str) -> LoggedModel:
        """A logged model of this lake or, where tracking is elsewhere, of that server: the registry's own, else the active one."""
        model = self.lake.get("logged_model", model_id)
        if model is not None and not model.deleted:
            return entities.logged_model(model)
        from mlflow import MlflowClient, get_tracking_uri

        elsewhere = [uri for uri in (self._tracking_uri, get_tracking_uri()) if uri and not self._is_this_lake(uri)]
        for uri in dict.fromkeys(elsewhere):
            try:
                return MlflowClient(tracking_uri=uri).get_logged_model(model_id)
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST) or uri == elsewhere[-1]:
                    raise
        raise not_found(f"Logged model with ID '{model_id}' not found.")

    def _is_this_lake(self, uri: str) -> bool:
        try:
            return LakeUri.parse(uri).root == self.home.uri.root
        except InvalidUri:
            return False


def _number(version: int | str) -> int:
    """The number of a version. Raises MlflowException: it is none."""
    validation._validate_model_version(version)
    return int(version)
