"""The files below runs' artifact folders: listed, never downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from spark_tracking.readers.schemas import ARTIFACTS

LISTINGS_AT_ONCE = 8


def list_artifacts(runs: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows of `artifacts` for batches of `runs_latest`, by MLflow's artifact repositories and their credentials."""
    with ThreadPoolExecutor(LISTINGS_AT_ONCE) as pool:
        for batch in runs:
            ids, experiments, uris = (batch.column(name).to_pylist() for name in ("run_id", "experiment_id", "artifact_uri"))
            rows = []
            for run, experiment, uri, files in zip(ids, experiments, uris, pool.map(_files, uris)):
                rows += [(run, experiment, uri, path, size) for path, size in files]
            columns = list(zip(*rows)) or [()] * len(ARTIFACTS)
            yield pa.RecordBatch.from_arrays([pa.array(c, f.type) for c, f in zip(columns, ARTIFACTS)], schema=ARTIFACTS)


def _files(uri: str | None) -> list[tuple[str, int | None]]:
    """Path and size of each file below an artifact root, by path."""
    if not uri:
        return []
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return sorted(walk(get_artifact_repository(uri)))


def walk(repository: Any) -> Iterator[tuple[str, int | None]]:
    """Path and size of each file of an MLflow artifact repository."""
    folders: list[str | None] = [None]
    while folders:
        for info in repository.list_artifacts(folders.pop()):
            if info.is_dir:
                folders.append(info.path)
            else:
                yield info.path, info.file_size
