"""MLflow's model registry on a lake: what a registry URI of `delta:///path` builds."""

from __future__ import annotations

from mlflow.store.model_registry.abstract_store import AbstractStore

from spark_tracking.address import LakeUri
from spark_tracking.lake import Lake
from spark_tracking.store.model_versions import ModelVersions
from spark_tracking.store.registered_models import RegisteredModels
from spark_tracking.store.things import Home
from spark_tracking.store.unsupported import fill

INHERITED = frozenset(
    {
        *("copy_model_version", "_await_model_version_creation_impl", "_parse_experiment_id_filter"),
        # a prompt is a registered model with a tag, its versions are model versions with tags
        *("create_prompt", "get_prompt", "search_prompts", "delete_prompt", "set_prompt_tag", "delete_prompt_tag"),
        *("create_prompt_version", "get_prompt_version", "search_prompt_versions", "delete_prompt_version"),
        *("get_prompt_version_by_alias", "set_prompt_alias", "delete_prompt_alias"),
        *("set_prompt_version_tag", "delete_prompt_version_tag"),
        *("link_prompt_version_to_model", "link_prompt_version_to_run"),
    }
)
"""Methods of MLflow's class that are right as they are."""


class LakeRegistryStore(AbstractStore):
    """MLflow's model registry on a lake.

    Args:
        store_uri: the lake's URI, see `LakeUri`.
        tracking_uri: of the server that logged models are on, where it is not this lake.

    Raises:
        InvalidUri: the URI is none of a lake.

    Example:
        >>> store = LakeRegistryStore("delta:///tmp/lake")
        >>> store.create_registered_model("wine").name
        'wine'
    """

    def __init__(self, store_uri: str, tracking_uri: str | None = None) -> None:
        super().__init__(store_uri, tracking_uri)  # type: ignore[no-untyped-call]
        self._home = Home.of(LakeUri.parse(store_uri))
        models = RegisteredModels(self._home)
        self.parts = {RegisteredModels: models, ModelVersions: ModelVersions(self._home, models, tracking_uri)}

    @property
    def lake(self) -> Lake:
        """The process's lake; made where there is none yet."""
        return self._home.lake


fill(LakeRegistryStore, AbstractStore, (RegisteredModels, ModelVersions), INHERITED)
