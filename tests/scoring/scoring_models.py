"""What the scoring tests score with, and how they save it. Models are folders, which need no server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cloudpickle
import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature

NUMBERS = pd.DataFrame(np.random.default_rng(7).normal(size=(200, 3)), columns=["a", "b", "c"])
CLASSES = (NUMBERS["a"] + NUMBERS["b"] > 0).astype("int64")


def save_sklearn(path: Path, estimator: Any, inputs: Any, outputs: Any) -> str:
    mlflow.sklearn.save_model(
        estimator, str(path), signature=infer_signature(inputs, outputs), serialization_format="cloudpickle", pip_requirements=[]
    )
    return str(path)


def save_function(path: Path, model: Any, signature: Any = None, **more: Any) -> str:
    """A `PythonModel`, pickled by value, since workers cannot import test modules."""
    module = sys.modules[type(model).__module__]
    cloudpickle.register_pickle_by_value(module)
    try:
        mlflow.pyfunc.save_model(str(path), python_model=model, signature=signature, pip_requirements=[], **more)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    return str(path)
