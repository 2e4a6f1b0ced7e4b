"""Reading an `mlruns/` folder, the file store that MLflow has retired, through MLflow's own code for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from spark_tracking.config import temporary_variables
from spark_tracking.errors import InvalidInput, NotFound
from spark_tracking.kinds.filters import parse_located
from spark_tracking.readers import rest_json
from spark_tracking.readers.base import DERIVED, Reader
from spark_tracking.readers.pages import sound
from spark_tracking.readers.query import EVERYTHING, Query, Range

PAGE = 1_000
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

    def __init__(self, path: Path) -> None:
        from mlflow.store.model_registry.file_store import FileStore as Registry
        from mlflow.store.tracking.file_store import FileStore

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

    def experiments(self, query: Query) -> dict[str, str]:
        found = {e.experiment_id: e.name for e in self._listed(3)}
        ids, names = query.experiment_ids or (), query.experiment_names
        return {id: name for id, name in found.items() if id in ids or name in names}

    def check_filter(self, query: Query) -> None:
        if query.spec.kind.plural != "logged_models":
            parse_located(query.spec.kind, query.filter)
        if query.version is not None or query.timestamp is not None:
            raise InvalidInput("version= and timestamp= are for lakes; a folder keeps no past states.")

    def split(self, query: Query, parts: int | None) -> list[Range]:
        return [EVERYTHING]

    def points_of(self, run_ids: Iterable[str]) -> Iterator[pa.RecordBatch]:
        """All points of some runs, in the columns of `run_metrics_history`."""
        for id in run_ids:
            yield from self._history(self._store.get_run(id))

    def _batches(self, query: Query, part: Range) -> Iterator[pa.RecordBatch]:
        table = DERIVED.get(query.table, query.table)
        refuse = partial(self.refuse, table)
        if table == "experiments_latest":
            yield sound(rest_json.experiments, list(map(_json, self._listed(_VIEWS[query.view_type]))), refuse)
        elif table == "registered_models_latest":
            for page in _pages(self._registry.search_registered_models, query.filter):
                yield sound(rest_json.registered_models, list(map(_json, page)), refuse)
        elif table == "model_versions_latest":
            for page in _pages(self._registry.search_model_versions, query.filter):
                yield sound(rest_json.model_versions, list(map(_json, page)), refuse)
        elif table == "logged_models_latest":
            models = self._store.search_logged_models(self._experiment_ids(query), query.filter)
            yield sound(rest_json.logged_models, list(map(_json, models)), refuse)
        else:
            for runs in self._runs(query):
                if table == "run_metrics_history":
                    for run in runs:
                        yield from self._history(run)
                else:
                    yield _run_batch(runs, table)

    def _listed(self, view: int) -> Iterator[Any]:
        for page in _pages(lambda **options: self._store.search_experiments(view_type=view, **options), None):
            yield from page

    def _experiment_ids(self, query: Query) -> list[str]:
        return list(query.experiment_ids) if query.experiment_ids is not None else [e.experiment_id for e in self._listed(3)]

    def _runs(self, query: Query) -> Iterator[list[Any]]:
        after, before = query.start_after, query.start_before
        for id in self._experiment_ids(query):  # one by one: a page of all would list them all again
            token = None
            while True:
                page = self._store.search_runs([id], query.filter, _VIEWS[query.view_type], 50_000, page_token=token)
                kept = [r for r in page if (after is None or r.info.start_time >= after) and (before is None or r.info.start_time < before)]
                yield from (kept[i : i + PAGE] for i in range(0, len(kept), PAGE))
                token = page.token
                if not token:
                    break

    def _history(self, run: Any) -> Iterator[pa.RecordBatch]:
        """The points as the files have them: MLflow's own reader takes step 0 for each that names a data set."""
        from mlflow.utils.file_utils import read_file_lines

        folder, names = self._store._get_run_files(run.info, "metric")
        told = {"info": {"run_id": run.info.run_id, "experiment_id": run.info.experiment_id}}
        for name in names:
            lines = [line.split() for line in read_file_lines(folder, name)]  # time, value, step, data set's name and digest
            points = [{"timestamp": p[0], "value": p[1], "step": p[2] if len(p) > 2 else 0} for p in lines]
            yield rest_json.points(told, name, points)


def _run_batch(runs: list[Any], table: str) -> pa.RecordBatch:
    batch = rest_json.runs(list(map(_json, runs)), table)
    if table == "runs":
        return batch
    inputs = [[m.model_id for m in (run.inputs.model_inputs if run.inputs else None) or ()] for run in runs]
    outputs = [
        [{"model_id": m.model_id, "step": m.step} for m in (run.outputs.model_outputs if run.outputs else None) or ()] for run in runs
    ]
    for name, values in (("model_inputs", inputs), ("model_outputs", outputs)):
        index = batch.schema.get_field_index(name)
        columns = list(batch.columns)
        columns[index] = pa.array(values, batch.schema.field(name).type)
        batch = pa.RecordBatch.from_arrays(columns, schema=batch.schema)
    return batch


def _pages(search: Any, filter: str | None) -> Iterator[list[Any]]:
    token = None
    while True:
        page = search(filter_string=filter, max_results=PAGE, page_token=token)
        if page:
            yield list(page)
        token = page.token
        if not token:
            return


def _json(entity: Any) -> Any:
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(entity.to_proto(), preserving_proto_field_name=True)
