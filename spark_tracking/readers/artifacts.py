"""The files below runs' artifact folders: listed, never downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from spark_tracking.errors import Unavailable
from spark_tracking.readers.pages import Listing, printable
from spark_tracking.readers.schemas import ARTIFACTS

LISTINGS_AT_ONCE = 8
DEEPEST = 50


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
    """Path and size of each file of an MLflow artifact repository.

    Raises:
        Unavailable: it lists something outside of itself, or folders without end.
    """
    folders: list[str | None] = [None]
    listing = Listing("The list of the artifacts")
    while folders:
        folder = folders.pop()
        listing.turn()
        for info in repository.list_artifacts(folder):
            _require_below(folder, info.path)
            if info.is_dir:
                folders.append(info.path)
            else:
                yield info.path, info.file_size


def _require_below(folder: str | None, path: str) -> None:
    parts = unquote(path).replace("\\", "/").split("/")
    if not path.startswith(f"{folder}/" if folder else "") or {"", ".", ".."} & set(parts) or any(ord(c) < 32 for c in unquote(path)):
        raise Unavailable(f"The artifacts list '{printable(path)}' in their folder '{folder or '.'}', which it is not in. It is refused.")
    if len(parts) > DEEPEST:
        raise Unavailable(f"The artifacts' folders go deeper than {DEEPEST} ('{path[:60]}…'): does one list itself?")
