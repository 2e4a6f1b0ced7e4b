"""MLflow's tracking store on a lake: what `MLFLOW_TRACKING_URI=delta:///path` builds."""

from __future__ import annotations

from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.utils.uri import resolve_uri_if_local

from spark_tracking.address import LakeUri
from spark_tracking.lake import Lake
from spark_tracking.store.experiments import DEFAULT_ID, Experiments
from spark_tracking.store.logged_models import LoggedModels
from spark_tracking.store.metrics import Metrics
from spark_tracking.store.runs import Runs
from spark_tracking.store.things import Home
from spark_tracking.store.trash import Trash
from spark_tracking.store.unsupported import fill

INHERITED = frozenset(
    {
        # asynchronous logging, built by MLflow on log_batch
        *("log_batch_async", "log_metric_async", "log_param_async", "set_tag_async", "log_spans_async"),
        *("end_async_logging", "flush_async_logging", "shut_down_async_logging"),
        # built by MLflow on what is overridden
        *("set_model_versions_tags", "list_scorers_across_experiments", "_evenly_spaced_indices"),
        # settings that no lake has a say in
        "resolve_trace_archival_config",
    }
)
"""Methods of MLflow's class that are right as they are."""


class LakeTrackingStore(AbstractStore):
    """MLflow's tracking store on a lake.

    Args:
        store_uri: the lake's tracking URI, see `LakeUri`.
        artifact_uri: where experiments' artifacts go by default; below the lake's root if not said.

    Raises:
        InvalidUri: the URI is none of a lake.

    Example:
        >>> store = LakeTrackingStore("delta:///tmp/lake")
        >>> store.get_experiment("0").name
        'Default'
    """

    DEFAULT_EXPERIMENT_ID = DEFAULT_ID

    def __init__(self, store_uri: str, artifact_uri: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._home = home = Home.of(LakeUri.parse(store_uri))
        if artifact_uri:
            home.artifact_root = resolve_uri_if_local(artifact_uri)
        self.artifact_root = home.artifact_root if artifact_uri else home.uri.artifact_root
        experiments, trash = Experiments(home, self.artifact_root), Trash(home)
        runs = Runs(home, experiments, trash)
        self.parts = {type(part): part for part in (experiments, runs, Metrics(home, runs), LoggedModels(home, experiments, trash))}

    @property
    def lake(self) -> Lake:
        """The process's lake; made where there is none yet."""
        return self._home.lake


fill(
    LakeTrackingStore,
    AbstractStore,
    (Experiments, Runs, Metrics, LoggedModels),
    INHERITED,
    ("deprecated_start_trace_v2", "deprecated_end_trace_v2"),
)
