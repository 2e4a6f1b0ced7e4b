"""Azure ML: tokens that renew themselves, the region by one call, and the plug-in's limits. Azure is a server on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from spark_tracking.cluster import azureml
from spark_tracking.errors import InvalidSetting, InvalidState, PermissionRefused, Unavailable

pytest.importorskip("azure.identity", reason="azure-identity comes with spark-tracking[azure]")
pytest.importorskip("trustme", reason="makes the certificate of the fake Azure")

from .fake_azure import PRINCIPAL, TRACKING_URI, WORKSPACE, Azure, running


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Azure]:
    with running(tmp_path) as (state, leads_there):
        for name, text in {**leads_there, **PRINCIPAL}.items():
            monkeypatch.setenv(name, text)
        yield state


def test_a_job_of_eight_hours_always_has_a_fresh_token_and_asks_once_an_hour(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    credential = azureml.credential()
    clock, real = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: real() + clock[0])
    for minute in range(0, 8 * 60, 5):
        clock[0] = minute * 60.0
        assert credential.get_token("https://ml.azure.com/.default").expires_on > time.time() + 60
    assert 8 <= len(azure.tokens) <= 10


def test_a_wrong_secret_is_refused_at_once_without_a_prompt_and_without_the_secret(azure: Azure) -> None:
    azure.refuse = True
    with pytest.raises(PermissionRefused) as caught:
        azureml.token()
    assert "AADSTS7000215" in caught.value.message
    assert "hush" not in caught.value.message
    assert not azure.prompts


def test_the_nodes_managed_identity_gives_a_token(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PRINCIPAL:
        monkeypatch.delenv(name)
    assert azureml.token().token in azure.tokens


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        (PRINCIPAL, "ClientSecretCredential"),
        ({"AZURE_CLIENT_ID": "c"}, "ManagedIdentityCredential"),
        ({}, "ManagedIdentityCredential"),
    ],
)
def test_the_environment_decides_between_service_principal_and_managed_identity(variables: dict[str, str], kind: str) -> None:
    assert type(azureml.credential(variables)).__name__ == kind


def test_the_region_is_found_by_one_call(azure: Azure) -> None:
    assert azureml.find_region(*WORKSPACE) == "westeurope"
    assert azure.asked == ["Bearer token-1"]


@pytest.mark.parametrize(("status", "error"), [(404, InvalidSetting), (403, PermissionRefused), (500, Unavailable)])
def test_a_region_that_cannot_be_found_says_why(azure: Azure, status: int, error: type[Exception]) -> None:
    azure.status = status
    with pytest.raises(error):
        azureml.find_region(*WORKSPACE)


def test_a_plug_in_that_is_missing_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(azureml, "version", absent)
    with pytest.raises(InvalidState, match=r"spark-tracking\[azure\]"):
        azureml.check_plugin()


@pytest.mark.parametrize(("mlflow", "fits"), [("3.15.0", True), ("3.17.2", False)])
def test_an_mlflow_beyond_the_plug_ins_limit_is_refused(monkeypatch: pytest.MonkeyPatch, mlflow: str, fits: bool) -> None:
    """azureml-mlflow 1.62.0.post6 declares mlflow-skinny<=3.15.0."""
    monkeypatch.setattr(azureml, "version", lambda name: {"azureml-mlflow": "1.62.0", "mlflow-skinny": mlflow}[name])
    monkeypatch.setattr(azureml, "requires", lambda name: ["mlflow-skinny<=3.15.0", "azure-identity"])
    if fits:
        azureml.check_plugin()
    else:
        with pytest.raises(InvalidState, match=r"mlflow-skinny<=3\.15\.0, and 3\.17\.2 is installed"):
            azureml.check_plugin()


def test_a_start_without_the_plug_in_is_refused_and_does_not_wait_for_anybody() -> None:
    environ = {**os.environ, **PRINCIPAL, "SPARK_TRACKING_URI": TRACKING_URI}
    done = subprocess.run(
        [sys.executable, "-m", "spark_tracking.cluster.environment"],
        env=environ, capture_output=True, text=True, check=False, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 3
    assert "azureml-mlflow" in done.stderr
    assert "hush" not in done.stderr + done.stdout
