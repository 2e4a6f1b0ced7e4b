"""Models to score with; `registry` has registered ones."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.models import infer_signature
from sklearn.linear_model import LinearRegression, LogisticRegression

sys.path.insert(0, str(Path(__file__).parent))
from scoring_models import CLASSES, NUMBERS, save_sklearn


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A logistic regression over doubles a, b, c, with a signature."""
    model = LogisticRegression().fit(NUMBERS, CLASSES)
    return save_sklearn(tmp_path_factory.mktemp("models") / "classifier", model, NUMBERS, model.predict(NUMBERS))


@pytest.fixture(scope="session")
def regressor(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A linear regression over doubles a, b, c that gives one double."""
    model = LinearRegression().fit(NUMBERS, NUMBERS["a"] * 2 - NUMBERS["c"])
    outputs = pd.DataFrame({"y": model.predict(NUMBERS)})
    return save_sklearn(tmp_path_factory.mktemp("models") / "regressor", model, NUMBERS, outputs)


@pytest.fixture(scope="session")
def registry_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One tracking server's database for the test run, with the registered model `wine`, versions 1 and 2.

    Leaves nothing set: what a fixture of the whole run sets, every later test would find.
    """
    before = dict(os.environ)
    folder = tmp_path_factory.mktemp("server")
    uri = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment("scoring", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("scoring")
    for labels in (CLASSES, 1 - CLASSES):
        model = LogisticRegression().fit(NUMBERS, labels)
        with mlflow.start_run():
            mlflow.sklearn.log_model(
                model,
                name="wine",
                signature=infer_signature(NUMBERS, model.predict(NUMBERS)),
                serialization_format="cloudpickle",
                registered_model_name="wine",
            )
    mlflow.set_tracking_uri(None)
    mlflow.tracking.fluent._active_experiment_id = None
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    return uri


@pytest.fixture
def registry(registry_uri: str) -> mlflow.MlflowClient:
    """A client of that server; its URI is the current one, and `champion` is version 1."""
    mlflow.set_tracking_uri(registry_uri)
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("wine", "champion", "1")
    return client
