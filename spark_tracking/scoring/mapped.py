"""Loading a model, with big arrays memory-mapped where its flavour allows, so that a node's workers share them.

An sklearn estimator is pickled whole, arrays inside. The first worker of a node to load a big one writes it once more in joblib's
form, which keeps arrays apart; all then map those copy-on-write: they share what they read, and may still write.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from pickle import PicklingError
from typing import Any

from spark_tracking.scoring.worker import ModelCopy, locked, node_folder

_BIG = 32 << 20  # bytes of model files from which sharing is worth a second write


def load_mapped(folder: Path, copy: ModelCopy) -> Any:
    """The model in a folder as an `mlflow.pyfunc.PyFuncModel`.

    Args:
        folder: where it is on this node.
        copy: what it is; its digest names the mapped form.
    """
    from mlflow.models import Model
    from mlflow.pyfunc import FLAVOR_NAME, MAIN, PyFuncModel, load_model

    def loaded() -> Any:
        return load_model(str(folder), suppress_warnings=True, model_config=dict(copy.config) or None)

    metadata = Model.load(str(folder))
    main = metadata.flavors.get(FLAVOR_NAME, {})
    plain = main.get(MAIN) == "mlflow.sklearn" and main.get("predict_fn", "predict") == "predict" and not copy.config
    if not plain or sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < _BIG:
        return loaded()
    import joblib  # type: ignore[import-untyped]  # comes with scikit-learn

    estimator = node_folder() / f"{copy.digest}-mapped" / "estimator"
    with locked(estimator.parent.with_suffix(".lock")):
        if not estimator.exists():
            whole = loaded()
            try:
                _write(whole.get_raw_model(), estimator)
            except (PicklingError, AttributeError, TypeError):  # of a class or function that only cloudpickle takes, as a notebook's
                return whole
    # Ours: written above from a model that the caller asked to load, in a folder that only this user can write.
    return PyFuncModel(model_meta=metadata, model_impl=_Mapped(joblib.load(estimator, mmap_mode="c")))


def _write(model: Any, estimator: Path) -> None:
    import joblib

    partial = estimator.parent.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        joblib.dump(model, partial / "estimator")
        partial.rename(estimator.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Mapped:
    """What `mlflow.sklearn` wraps an estimator in, for one that is mapped."""

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        return self._estimator.predict(data)

    def get_raw_model(self) -> Any:
        return self._estimator
