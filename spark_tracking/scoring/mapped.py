"""Loading a model, with big arrays memory-mapped where its flavour allows, so that a node's workers share them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark_tracking.scoring.worker import ModelCopy


def load_mapped(folder: Path, copy: ModelCopy) -> Any:
    """The model in a folder as an `mlflow.pyfunc.PyFuncModel`."""
    import mlflow.pyfunc

    return mlflow.pyfunc.load_model(str(folder), suppress_warnings=True, model_config=dict(copy.config) or None)
