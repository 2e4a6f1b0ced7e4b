"""Reading an `mlruns/` folder, the file store that MLflow has retired, through MLflow's own code for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from spark_tracking.config import temporary_variables
from spark_tracking.errors import NotFound
from spark_tracking.kinds.catalog import EXPERIMENT, LOGGED_MODEL, REGISTERED_MODEL, RUN
from spark_tracking.readers import pages
from spark_tracking.readers.query import EVERYTHING, Query, Range
from spark_tracking.readers.reader import Reader, Row
from spark_tracking.readers.schemas import TABLES

PAGE = 1_000
LARGEST_PAGE = 50_000
_VIEWS = {"active_only": 1, "deleted_only": 2, "all": 3}


def folder_of(uri: str) -> Path | None:
    """The folder that a URI or path names, if it looks like a file store."""
    scheme, _, _ = uri.partition(":")
    if scheme != "file" and "://" in uri:
        return None
    from mlflow.utils.file_utils import local_file_uri_to_path

    path = Path(local_file_uri_to_path(uri))
    return path if any(path.glob("*/meta.yaml")) or (path / ".trash").is_dir() else None


class FolderReader(Reader):
    """An `mlruns/` folder."""

    noun = "a folder"

    def __init__(self, uri: str, path: Path) -> None:
        from mlflow.store.model_registry.file_store import FileStore as Registry
        from mlflow.store.tracking.file_store import FileStore

        self.uri = uri
        self._path = path.resolve()
        with temporary_variables({"MLFLOW_ALLOW_FILE_STORE": "true"}):  # whoever names the folder knows that it is retired
            self._store = FileStore(str(self._path))
            self._registry = Registry(str(self._path))

    @property
    def name(self) -> str:
        return f"the folder {self._path}"

    def ping(self) -> None:
        if not self._path.is_dir():
            raise NotFound(f"There is no folder {self._path}. Name the mlruns folder that MLflow wrote.")

    def check_filter(self, query: Query) -> None:
        # MLflow's file store has a language of its own for logged models, and checks it
        super().check_filter(replace(query, filter=None) if query.spec.kind is LOGGED_MODEL else query)

    def split(self, query: Query, parts: int | None) -> list[Range]:
        return [EVERYTHING]

    def points_of(self, runs: Sequence[Row]) -> pa.Table:
        found = [self._history(self._store.get_run(run["run_id"])) for run in runs]
        return pa.Table.from_batches([batch for batches in found for batch in batches], TABLES["run_metrics_history"].schema)

    def _batches(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        if query.table == "run_metrics_history":
            yield from (batch for runs in self._runs(query) for run in runs for batch in self._history(run))
            return
        for page in self._pages(query):
            convert = partial(pages.things, query.table, whole=True)
            yield pages.sound(convert, [_json(one) for one in page], partial(self.refuse, query.table))[0]

    def _pages(self, query: Query) -> Iterator[list[Any]]:
        kind = query.spec.kind
        if kind is RUN:
            yield from self._runs(query)
        elif kind is EXPERIMENT:
            yield list(self._listed(query.view_type))
        elif kind is LOGGED_MODEL:
            yield self._store.search_logged_models(self._experiment_ids(query), query.filter)
        else:
            search = self._registry.search_registered_models if kind is REGISTERED_MODEL else self._registry.search_model_versions
            yield from _pages(search, filter_string=query.filter, max_results=PAGE)

    def _listed(self, view: str) -> Iterator[Any]:
        for page in _pages(self._store.search_experiments, view_type=_VIEWS[view], max_results=PAGE):
            yield from page

    def _experiment_ids(self, query: Query) -> list[str]:
        return list(query.experiment_ids) if query.experiment_ids is not None else [e.experiment_id for e in self._listed("all")]

    def _runs(self, query: Query) -> Iterator[list[Any]]:
        after, before = query.start_after, query.start_before
        asked = {"filter_string": query.filter, "run_view_type": _VIEWS[query.view_type], "max_results": LARGEST_PAGE}
        for id in self._experiment_ids(query):  # one by one: a page of all would list them all again
            for page in _pages(self._store.search_runs, experiment_ids=[id], **asked):
                kept = [r for r in page if (after is None or r.info.start_time >= after) and (before is None or r.info.start_time < before)]
                yield from (kept[i : i + PAGE] for i in range(0, len(kept), PAGE))

    def _history(self, run: Any) -> Iterator[pa.RecordBatch]:
        """The points as the files have them: MLflow's own reader takes step 0 for each that names a data set."""
        from mlflow.utils.file_utils import read_file_lines

        folder, names = self._store._get_run_files(run.info, "metric")
        told = {"run_id": run.info.run_id, "experiment_id": run.info.experiment_id}
        for name in names:
            lines = [line.split() for line in read_file_lines(folder, name)]  # time, value, step, data set's name and digest
            points = [{"timestamp": p[0], "value": p[1], "step": p[2] if len(p) > 2 else 0} for p in lines]
            yield pages.points(told, name, points)


def _pages(search: Any, **options: Any) -> Iterator[list[Any]]:
    token = None
    while True:
        page = search(**options, page_token=token)
        if page:
            yield list(page)
        token = page.token
        if not token:
            return


def _json(entity: Any) -> Any:
    from google.protobuf.json_format import MessageToDict

    told = MessageToDict(entity.to_proto(), preserving_proto_field_name=True)
    if hasattr(entity, "outputs"):  # a run, of whose models the store tells all
        for way, models in (("inputs", "model_inputs"), ("outputs", "model_outputs")):
            told.setdefault(way, {}).setdefault(models, [])
    return told
