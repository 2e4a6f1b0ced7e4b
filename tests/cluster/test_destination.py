"""Settings in, MLflow's variables out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_tracking.cluster import environment
from spark_tracking.cluster.settings import FIELDS, azureml_uri, check_experiment, destination, map_experiment, resolve
from spark_tracking.errors import InvalidInput, InvalidSetting, InvalidState

SUBSCRIPTION = "0f1e2d3c-0000-4000-8000-00000000abcd"
AZUREML = azureml_uri(SUBSCRIPTION, "rg", "ws-1", "West Europe")
PRINCIPAL = {"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_CLIENT_SECRET": "hush"}
PARTS = {
    "SPARK_TRACKING_AZURE_SUBSCRIPTION": SUBSCRIPTION,
    "SPARK_TRACKING_AZURE_RESOURCE_GROUP": "rg",
    "SPARK_TRACKING_AZURE_WORKSPACE": "ws-1",
}


def variables(**environ: str) -> dict[str, str]:
    return dict(resolve(environ).variables)


@pytest.mark.parametrize(
    ("text", "kind", "uri"),
    [
        ("databricks", "databricks", "databricks"),
        ("databricks://prod", "databricks", "databricks://prod"),
        ("https://mlflow.example.com/", "server", "https://mlflow.example.com"),
        ("http://[::1]:5000/prefix", "server", "http://[::1]:5000/prefix"),
        ("delta:///shared/lake/", "lake", "delta:///shared/lake"),
        ("delta+abfss://c@a.dfs.core.windows.net/ml", "lake", "delta+abfss://c@a.dfs.core.windows.net/ml"),
        (AZUREML, "azureml", AZUREML),
    ],
)
def test_each_kind_of_destination_is_recognised(text: str, kind: str, uri: str) -> None:
    found = destination(text)
    assert (found.kind, found.uri) == (kind, uri)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("adbazureml://westeurope.api.azureml.ms/x", "retired"),
        ("azureml://westeurope.api.azureml.ms/mlflow/v1.0/subscriptions/not-a-guid", "its subscription 'not-a-guid' is no GUID"),
        ("azureml://westeurope.api.azureml.ms/mlflow/v1.0/workspaces/ws-1", "its form is another. Expected azureml://<region>"),
        ("http://", "names no host"),
        ("http://host:port", "names no host"),
        ("http://a b", "blank"),
        ("https://ann:hush@host", "MLFLOW_TRACKING_PASSWORD"),
        ("https://host?token=hush", "MLFLOW_TRACKING_TOKEN"),
        ("sqlite:////tmp/a.db", "file of one node"),
        ("postgresql+psycopg2://ann:hush@host/db", "mlflow server"),
        ("file:///tmp/mlruns", "retired"),
        ("/tmp/mlruns", "expected"),
        ("delta:lake", "relative"),
        ("delta:///Volumes/main/ml/lake", "cloud URI"),
        ("delta:///dbfs/lake", "cloud URI"),
        ("delta+s3://", "bucket"),
    ],
)
def test_what_cannot_be_a_destination_is_refused_with_what_to_do_and_without_secrets(text: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        resolve({"SPARK_TRACKING_URI": text})
    assert hint in caught.value.message
    assert "hush" not in caught.value.message


def test_the_registry_follows_the_server_so_that_no_platform_default_wins() -> None:
    assert variables(SPARK_TRACKING_URI="http://h:5000")["MLFLOW_REGISTRY_URI"] == "http://h:5000"


def test_on_databricks_the_registry_stays_mlflows_choice() -> None:
    assert variables(SPARK_TRACKING_URI="databricks") == {"MLFLOW_TRACKING_URI": "databricks"}


def test_a_registry_of_its_own_is_kept() -> None:
    found = variables(SPARK_TRACKING_URI="http://h:5000", SPARK_TRACKING_REGISTRY_URI="databricks-uc")
    assert found["MLFLOW_REGISTRY_URI"] == "databricks-uc"


def test_the_experiment_never_becomes_mlflows_own_variable() -> None:
    found = variables(SPARK_TRACKING_URI="http://h:5000", SPARK_TRACKING_EXPERIMENT="{user}/churn")
    assert found["SPARK_TRACKING_EXPERIMENT"] == "{user}/churn"
    assert not [name for name in found if name.startswith("MLFLOW_EXPERIMENT")]


@pytest.mark.parametrize("template", ["{usr}", "{", "{user", "{}", "{user.name}"])
def test_an_experiment_with_a_wrong_field_is_refused(template: str) -> None:
    with pytest.raises(InvalidSetting):
        check_experiment(template)


@pytest.mark.parametrize("field", FIELDS)
def test_each_documented_field_is_accepted(field: str) -> None:
    check_experiment(f"a-{{{field}}}-b", "azureml")


@pytest.mark.parametrize(
    ("name", "kind", "mapped"),
    [
        ("churn", "databricks", "/Users/ann@example.com/churn"),
        ("/Shared/churn", "databricks", "/Shared/churn"),
        ("/Users/ann@example.com/churn", "azureml", "Users-ann-example-com-churn"),
        ("Größe", "azureml", "Gr-e"),
        ("/Users/ann@example.com/churn", "server", "/Users/ann@example.com/churn"),
    ],
)
def test_names_are_mapped_to_what_the_destination_takes(name: str, kind: str, mapped: str) -> None:
    assert map_experiment(name, kind, user="ann@example.com") == mapped


@given(st.text(min_size=1, max_size=400))
def test_a_mapped_azure_ml_name_is_always_valid_or_refused(name: str) -> None:
    import re

    try:
        mapped = map_experiment(name, "azureml", user="ann")
    except InvalidSetting:
        return
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,255}", mapped)


def test_long_names_that_differ_only_at_the_end_stay_apart() -> None:
    assert map_experiment("x" * 600 + "a", "server", "ann") != map_experiment("x" * 600 + "b", "server", "ann")


def test_azure_ml_from_its_parts() -> None:
    found = resolve({**PARTS, "SPARK_TRACKING_AZURE_REGION": "West Europe", **PRINCIPAL})
    assert found.variables["MLFLOW_TRACKING_URI"] == AZUREML
    assert "hush" not in repr(found)


def test_azure_ml_without_a_region_asks_once() -> None:
    asked: list[tuple[str, str, str]] = []

    def find(*workspace: str) -> str:
        asked.append(workspace)  # type: ignore[arg-type]
        return "westeurope"

    assert resolve({**PARTS, **PRINCIPAL}, find_region=find).destination.uri == AZUREML
    assert asked == [(SUBSCRIPTION, "rg", "ws-1")]


def test_azure_ml_from_the_workspaces_config_file(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"subscription_id": SUBSCRIPTION, "resource_group": "rg", "workspace_name": "ws-1"}), "utf-8-sig")
    environ = {"SPARK_TRACKING_AZURE_CONFIG": str(file), "SPARK_TRACKING_AZURE_REGION": "westeurope", **PRINCIPAL}
    assert resolve(environ).destination.uri == AZUREML


@pytest.mark.parametrize("content", [None, "{subscription_id: x}", '{"subscription_id": "x"}', "[]"])
def test_a_config_file_that_is_none_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidSetting, match=r"config\.json"):
        resolve({"SPARK_TRACKING_AZURE_CONFIG": str(file)})


@pytest.mark.parametrize("missing", [*PARTS])
def test_an_incomplete_workspace_is_refused(missing: str) -> None:
    with pytest.raises(InvalidSetting, match="not complete"):
        resolve({name: text for name, text in PARTS.items() if name != missing})


@pytest.mark.parametrize("missing", [*PRINCIPAL])
def test_half_a_service_principal_is_refused_since_azureml_mlflow_would_prompt(missing: str) -> None:
    environ = {name: text for name, text in PRINCIPAL.items() if name != missing}
    with pytest.raises(InvalidSetting, match=missing):
        resolve({"SPARK_TRACKING_URI": AZUREML, **environ})


def test_uri_and_parts_together_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="Keep one"):
        resolve({"SPARK_TRACKING_URI": AZUREML, **PARTS})


def test_an_unresolved_secret_reference_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="unresolved"):
        resolve({"SPARK_TRACKING_URI": "{{secrets/ml/uri}}"})


@pytest.mark.parametrize("text", ["http://h\nexport X=1", "http://h\x00", "http://h\x1b[0m"])
def test_control_characters_are_refused(text: str) -> None:
    with pytest.raises(InvalidSetting, match="control character"):
        resolve({"SPARK_TRACKING_URI": text})


def test_a_wrong_strictness_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="SPARK_TRACKING_STRICT"):
        resolve({"SPARK_TRACKING_URI": "databricks", "SPARK_TRACKING_STRICT": "perhaps"})


def test_nothing_set_names_the_setting_and_what_was_meant() -> None:
    with pytest.raises(InvalidSetting, match="SPARK_TRACKING_URL"):
        resolve({"SPARK_TRACKING_URL": "http://h"})


def test_the_one_setting_decides_and_says_what_it_replaced() -> None:
    plan = resolve({"SPARK_TRACKING_URI": "http://h", "MLFLOW_TRACKING_URI": "https://ann:hush@old"})
    assert plan.variables["MLFLOW_TRACKING_URI"] == "http://h"
    assert any("old" in note.text for note in plan.notes)
    assert "hush" not in str(plan.notes)


def test_a_lake_is_noted_for_clients_that_do_not_know_its_uri() -> None:
    notes = " ".join(map(str, resolve({"SPARK_TRACKING_URI": "delta+s3://bucket/lake"}).notes))
    assert "Scala" in notes
    assert "mlflow server" in notes


@given(st.text(st.characters(blacklist_categories=("Cc", "Cs"), blacklist_characters="{}\x7f"), min_size=1, max_size=60))
def test_exports_survive_a_shell_whatever_the_experiment(name: str) -> None:
    try:
        plan = environment.plan_for({"SPARK_TRACKING_URI": "http://h", "SPARK_TRACKING_EXPERIMENT": name})
    except InvalidSetting:
        return
    script = environment.exports(plan) + 'printf %s "$SPARK_TRACKING_EXPERIMENT"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=True)
    assert done.stdout.decode() == plan.variables.get("SPARK_TRACKING_EXPERIMENT", "")


def test_the_check_imports_neither_mlflow_nor_deltalake_when_all_is_right() -> None:
    code = (
        "import sys; from spark_tracking.cluster.environment import plan_for; plan_for(); "
        "print([m for m in ('mlflow', 'deltalake', 'pyspark', 'pyarrow', 'pandas') if m in sys.modules])"
    )
    environ = {**os.environ, "SPARK_TRACKING_URI": "delta:///shared/lake"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("uri", ["delta+s3://b/lake", "delta+abfss://c@a.dfs.core.windows.net/lake"])
def test_a_lake_on_an_object_store_needs_its_extra(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment.plan_for({"SPARK_TRACKING_URI": uri})
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    with pytest.raises(InvalidState, match=r"spark-tracking\[(s3|abfss)\]"):
        environment.plan_for({"SPARK_TRACKING_URI": uri})
    environment.plan_for({"SPARK_TRACKING_URI": "delta:///shared/lake"})


def test_apply_sets_this_process_as_a_start_would() -> None:
    import mlflow

    environment.apply({"SPARK_TRACKING_URI": "http://h:5000"})
    assert mlflow.get_tracking_uri() == "http://h:5000"
    assert mlflow.get_registry_uri() == "http://h:5000"


def test_apply_sets_nothing_when_a_setting_is_wrong() -> None:
    before = dict(os.environ)
    with pytest.raises(InvalidSetting):
        environment.apply({"SPARK_TRACKING_URI": "nonsense"})
    assert dict(os.environ) == before
