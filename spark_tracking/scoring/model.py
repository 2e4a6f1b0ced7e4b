"""The model of one scoring job: resolved once, on the driver, to a version and a folder whose content has a digest.

Whatever happens to an alias or a stage afterwards changes nothing in a job that has its `ResolvedModel`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException
from mlflow.models import Model

from spark_tracking.errors import InvalidInput, NotFound
from spark_tracking.masking import masked

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.types import Schema

_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/]+)|/(?P<version>[^/]+))$")


@dataclass(frozen=True)
class ResolvedModel:
    """A model that can no longer change under a job.

    Attributes:
        uri, pinned_uri: what the caller gave, and the same without an alias or stage, e.g. `models:/wine/3`.
        path: folder on this machine that holds the model (`MLmodel` and its files); `metadata`: its `mlflow.models.Model`.
        digest: SHA-256 (first 32 hex digits) over the names and contents of the model's files.
        name, version, alias: of a registered model; None otherwise.
        run_id, model_id: the run and the logged model that it comes from, where known.
    """

    uri: str
    pinned_uri: str
    path: Path
    digest: str
    name: str | None
    version: str | None
    alias: str | None
    run_id: str | None
    model_id: str | None
    metadata: Any = field(repr=False, compare=False)

    @property
    def inputs(self) -> Schema | None:
        """The signature's inputs, or None where the model was logged without a signature."""
        return self.metadata.get_input_schema()  # type: ignore[no-any-return]

    @property
    def outputs(self) -> Schema | None:
        """The signature's outputs, or None."""
        return self.metadata.get_output_schema()  # type: ignore[no-any-return]

    @property
    def is_spark_ml(self) -> bool:
        """Whether this is a Spark ML pipeline, which scores by its own `transform`."""
        return "spark" in self.metadata.flavors

    @property
    def label(self) -> str:
        """How messages call the model: `wine version 3 (@champion)`, or its URI."""
        if self.name is None:
            return self.pinned_uri
        return f"{self.name} version {self.version}" + (f" (@{self.alias})" if self.alias else "")

    def facts(self) -> dict[str, str | None]:
        """What a commit or a run records about the model."""
        return {
            "model_uri": masked(self.uri),
            "model_name": self.name,
            "model_version": self.version,
            "model_alias": self.alias,
            "model_run_id": self.run_id,
            "model_id": self.model_id,
            "model_digest": self.digest,
        }


def resolve(model_uri: str) -> ResolvedModel:
    """Find out which model a URI of MLflow's, a folder or a cloud URI means now, and bring its files to this machine.

    Raises:
        NotFound: there is no such model, version, alias or folder.
        InvalidInput: the folder is not an MLflow model.

    Example:
        >>> resolve("models:/wine@champion").label
        'wine version 3 (@champion)'
    """
    match = _REGISTERED.match(model_uri)
    version = _registered_version(model_uri, match) if match else None
    pinned_uri = f"models:/{version.name}/{version.version}" if version else model_uri
    path = _folder(pinned_uri)
    if not (path / "MLmodel").is_file():
        raise InvalidInput(f"'{model_uri}' is not an MLflow model: there is no file 'MLmodel' in it. Give the URI that log_model returned.")
    metadata = Model.load(str(path))
    return ResolvedModel(
        uri=model_uri,
        pinned_uri=pinned_uri,
        path=path,
        digest=folder_digest(path),
        name=version.name if version else None,
        version=str(version.version) if version else None,
        alias=match["alias"] if match else None,
        run_id=(version.run_id if version else None) or metadata.run_id or None,
        model_id=getattr(metadata, "model_id", None) or None,
        metadata=metadata,
    )


def _registered_version(model_uri: str, match: re.Match[str]) -> ModelVersion:
    from mlflow import MlflowClient

    client, name = MlflowClient(), match["name"]
    try:
        if match["alias"]:
            return client.get_model_version_by_alias(name, match["alias"])
        if match["version"].isdigit():
            return client.get_model_version(name, match["version"])
        versions = list(client.search_model_versions(f"name='{name}'"))
    except MlflowException as error:
        raise NotFound(
            f"'{model_uri}' could not be resolved: {error.message} Check the name, and that MLFLOW_TRACKING_URI is right."
        ) from error
    if match["version"].lower() != "latest":
        versions = [version for version in versions if str(version.current_stage).lower() == match["version"].lower()]
    if not versions:
        raise NotFound(f"'{model_uri}' names no version of the registered model '{name}'. Give a version number or an alias.")
    return max(versions, key=lambda version: int(version.version))


def _folder(uri: str) -> Path:
    """The model's folder; a local one as it is, a remote one downloaded once per process."""
    if "://" not in uri and ":/" not in uri:
        path = Path(uri).expanduser().resolve()
        if not path.is_dir():
            raise NotFound(f"The model folder '{uri}' does not exist. Other forms: models:/name/1, models:/name@alias, runs:/<id>/<path>.")
        return path
    import mlflow

    return _downloaded(uri, mlflow.get_tracking_uri(), mlflow.get_registry_uri())


@lru_cache(maxsize=32)
def _downloaded(uri: str, tracking_uri: str, registry_uri: str) -> Path:
    """Keyed by the servers too: the same name on another server is another model."""
    from mlflow.artifacts import download_artifacts

    try:
        return Path(download_artifacts(uri)).resolve()
    except (MlflowException, OSError) as error:
        raise NotFound(f"The model '{uri}' could not be downloaded: {error}") from error


def folder_digest(folder: Path) -> str:
    """A digest of a folder's relative file names and contents; two equal folders anywhere have the same one.

    `registered_model_meta` is left out: MLflow writes it on download, and it is not the model.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "registered_model_meta")
    states = [(file.relative_to(folder).as_posix(), file.stat()) for file in files]
    return _digest(folder, tuple((name, state.st_size, state.st_mtime_ns, state.st_ino) for name, state in states))


@lru_cache(maxsize=64)
def _digest(folder: Path, files: tuple[tuple[str, int, int, int], ...]) -> str:
    """Read once as long as no file changes: of a model of 1 GB it takes a second."""
    total = hashlib.sha256()
    for name, size, *_ in files:
        total.update(f"{name}\0{size}\0".encode())
        with (folder / name).open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()[:32]
