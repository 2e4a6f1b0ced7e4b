"""MLflow's tracking and model-registry stores on a lake: `MLFLOW_TRACKING_URI=delta:///path`.

MLflow imports this module while it is itself being imported, so the stores behind the two builders load on the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark_tracking.store.registry import LakeRegistryStore
    from spark_tracking.store.tracking import LakeTrackingStore


def tracking_store(store_uri: str, artifact_uri: str | None = None) -> LakeTrackingStore:
    """What MLflow calls for a tracking URI of ours."""
    from spark_tracking.store.tracking import LakeTrackingStore

    return LakeTrackingStore(store_uri, artifact_uri)  # type: ignore[abstract]  # `fill` has the methods


def registry_store(store_uri: str, tracking_uri: str | None = None) -> LakeRegistryStore:
    """What MLflow calls for a registry URI of ours."""
    from spark_tracking.store.registry import LakeRegistryStore

    return LakeRegistryStore(store_uri, tracking_uri)  # type: ignore[abstract]  # `fill` has the methods


def scorer_store(tracking_uri: str) -> Any:
    """What MLflow calls for registered scorers at a tracking URI of ours: its own, by way of the tracking store, which has none."""
    from mlflow.genai.scorers.registry import MlflowTrackingStore

    return MlflowTrackingStore(tracking_uri)
