"""One set of settings in each platform's form, and the wheel beside each runtime's own packages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from spark_tracking.cli import main
from spark_tracking.cluster.platforms import Settings, databricks_cluster, databricks_policy, emr_configurations, spark_properties
from spark_tracking.errors import InvalidInput

from .test_init_script import wheel_of_this_checkout

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
RUNTIMES = {name: data for name, data in json.loads((DATA / "runtimes.json").read_text()).items() if name != "source"}
SCRIPT = "/Volumes/main/ml/init/spark-tracking-init.sh"
WHEEL = "/Volumes/main/ml/wheels/spark_tracking-0.1.0-py3-none-any.whl"
SETTINGS = Settings(
    {"SPARK_TRACKING_URI": "https://mlflow.example.com", "SPARK_TRACKING_EXPERIMENT": "team/{user}", "SPARK_TRACKING_PACKAGE": WHEEL},
    {"MLFLOW_TRACKING_TOKEN": "ml/token"},
    SCRIPT,
)


def check_policy(definition: dict[str, Any]) -> None:
    """Databricks' rules: one limitation for an attribute, of a known type with the fields of that type."""
    rules = json.loads((DATA / "policy_rules.json").read_text())
    for path, rule in definition.items():
        assert any(re.fullmatch(pattern, path) for pattern in rules["paths"]), path
        fields = rules["types"][rule["type"]]
        assert set(fields["required"]) <= rule.keys() - {"type"} <= {*fields["required"], *fields["optional"]}, path
        assert isinstance(rule.get("value", ""), str | int | float | bool)
        assert isinstance(rule.get("hidden", False), bool)
        if "pattern" in rule:
            re.compile(rule["pattern"])
        if path.startswith("init_scripts"):  # an indexed script must be fixed, and no index skipped
            assert rule["type"] == "fixed"
            assert path.startswith("init_scripts.0.")


def test_the_policy_obeys_databricks_rules_and_holds_script_settings_secrets_and_library() -> None:
    request = databricks_policy(SETTINGS, "ml")
    definition = json.loads(request["definition"])
    check_policy(definition)
    assert definition["init_scripts.0.volumes.destination"]["value"] == SCRIPT
    assert definition["spark_env_vars.SPARK_TRACKING_URI"]["value"] == "https://mlflow.example.com"
    assert definition["spark_env_vars.MLFLOW_TRACKING_TOKEN"] == {"type": "fixed", "value": "{{secrets/ml/token}}", "hidden": True}
    assert request["libraries"] == [{"whl": WHEEL}]
    assert request.keys() == {"name", "definition", "libraries"}


@pytest.mark.parametrize(
    ("version", "allowed"),
    [
        ("17.3.x-scala2.13", True),
        ("18.0.x-cpu-ml-scala2.13", True),
        ("18.x-scala2.13", True),
        ("19.x-photon-scala2.13", True),
        ("16.4.x-scala2.13", False),
        ("15.4.x-scala2.12", False),
    ],
)
def test_the_policy_admits_runtimes_with_spark_4_only(version: str, allowed: bool) -> None:
    definition = json.loads(databricks_policy(SETTINGS)["definition"])
    assert bool(re.fullmatch(definition["spark_version"]["pattern"], version)) is allowed


def test_a_wheel_with_an_extra_is_a_library_without_it() -> None:
    with_extra = Settings({**SETTINGS.variables, "SPARK_TRACKING_PACKAGE": f"{WHEEL}[abfss]"}, {}, SCRIPT)
    request = databricks_policy(with_extra)
    assert request["libraries"] == [{"whl": WHEEL}]
    assert json.loads(request["definition"])["spark_env_vars.SPARK_TRACKING_PACKAGE"]["value"] == f"{WHEEL}[abfss]"


def test_a_job_cluster_says_the_same_as_the_policy() -> None:
    job, definition = databricks_cluster(SETTINGS), json.loads(databricks_policy(SETTINGS)["definition"])
    values = {path.removeprefix("spark_env_vars."): rule["value"] for path, rule in definition.items() if path.startswith("spark_env")}
    assert job["new_cluster"]["spark_env_vars"] == values
    assert job["new_cluster"]["init_scripts"] == [{"volumes": {"destination": SCRIPT}}]
    assert job["libraries"] == [{"whl": WHEEL}]


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        (SCRIPT, "volumes"),
        ("/Workspace/Shared/a.sh", "workspace"),
        ("abfss://c@a.dfs.core.windows.net/a.sh", "abfss"),
        ("gs://b/a.sh", "gcs"),
    ],
)
def test_each_place_of_an_init_script_has_its_attribute(place: str, kind: str) -> None:
    definition = json.loads(databricks_policy(Settings(SETTINGS.variables, {}, place))["definition"])
    check_policy(definition)
    assert f"init_scripts.0.{kind}.destination" in definition


@pytest.mark.parametrize("place", ["", "dbfs:/init.sh", "/dbfs/init.sh", "init.sh", "/Volumes/x"])
def test_a_place_that_databricks_refuses_is_refused(place: str) -> None:
    with pytest.raises(InvalidInput, match="init script's place"):
        databricks_policy(Settings(SETTINGS.variables, {}, place))


@pytest.mark.parametrize(
    ("variables", "secrets"),
    [
        ({"SPARK_TRACKING_URI": "ftp://x"}, {}),
        ({"SPARK_TRACKING_URI": "http://h", "MLFLOW_TRACKING_PASSWORD": "hush"}, {}),
        ({"SPARK_TRACKING_URI": "http://h"}, {"MLFLOW_TRACKING_TOKEN": "hush"}),
    ],
)
def test_wrong_settings_and_secrets_in_the_open_are_refused(variables: dict[str, str], secrets: dict[str, str]) -> None:
    with pytest.raises(InvalidInput):
        databricks_policy(Settings(variables, secrets, SCRIPT))


def test_a_service_principal_is_known_to_be_whole_from_its_references() -> None:
    uri = "azureml://westeurope.api.azureml.ms/mlflow/v1.0/subscriptions/0f1e2d3c-0000-4000-8000-00000000abcd/resourceGroups/rg"
    uri += "/providers/Microsoft.MachineLearningServices/workspaces/ws1"
    open_part = {"SPARK_TRACKING_URI": uri, "AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c"}
    databricks_policy(Settings(open_part, {"AZURE_CLIENT_SECRET": "ml/azure"}, SCRIPT))
    with pytest.raises(InvalidInput, match="AZURE_CLIENT_SECRET"):
        databricks_policy(Settings(open_part, {}, SCRIPT))


def test_yarn_gets_drivers_and_executors_and_no_secret() -> None:
    properties = spark_properties(SETTINGS)
    for place in ("spark.executorEnv", "spark.yarn.appMasterEnv"):
        assert properties[f"{place}.MLFLOW_TRACKING_URI"] == "https://mlflow.example.com"
    assert "ml/token" not in json.dumps(properties)
    first, second = emr_configurations(SETTINGS)
    assert first["Configurations"][0]["Properties"]["MLFLOW_TRACKING_URI"] == "https://mlflow.example.com"
    assert second == {"Classification": "spark-defaults", "Properties": properties}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["cluster", *arguments])


def test_the_printed_policy_is_the_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_TRACKING_EXPERIMENT", "team/{user}")  # from the shell, where no option says otherwise
    arguments = ["--uri", "https://mlflow.example.com", "--package", WHEEL, "--secret", "MLFLOW_TRACKING_TOKEN=ml/token"]
    done = run("policy", *arguments, "--init-script", SCRIPT, "--name", "ml")
    printed, expected = json.loads(done.stdout), databricks_policy(SETTINGS, "ml")
    assert json.loads(printed.pop("definition")) == json.loads(expected.pop("definition"))
    assert printed == expected
    check_policy(json.loads(run("policy", *arguments, "--init-script", SCRIPT, "--definition").stdout))


def test_the_example_policy_in_the_repository_is_what_the_command_prints() -> None:
    done = run("policy", "--uri", "https://mlflow.example.com", "--experiment", "{user}/{notebook}", "--package", WHEEL, "--strict",
               "--secret", "MLFLOW_TRACKING_TOKEN=ml/mlflow-token", "--init-script", SCRIPT)  # fmt: skip
    assert done.stdout == (ROOT / "init_scripts" / "compute-policy.json").read_text()


def test_env_prints_what_a_shell_takes_and_keeps_remarks_apart() -> None:
    done = run("env", "--uri", "delta:///shared/lake")
    assert "export MLFLOW_TRACKING_URI=delta:///shared/lake\n" in done.stdout
    assert "note:" not in done.stdout
    assert "Scala" in done.stderr
    kernel = json.loads(run("env", "--uri", "http://h", "--format", "kernel").stdout)
    assert kernel["env"]["MLFLOW_TRACKING_URI"] == "http://h"


def test_properties_are_lines_of_spark_defaults() -> None:
    done = run("config", "--platform", "spark", "--uri", "http://h")
    assert "spark.executorEnv.MLFLOW_TRACKING_URI http://h\n" in done.stdout


def test_the_script_that_the_package_prints_is_the_repositorys() -> None:
    assert run("script").stdout == (ROOT / "init_scripts" / "spark-tracking-init.sh").read_text()


@pytest.mark.parametrize("arguments", [["--set", "A"], ["--secret", "=x/y"], ["--set", "A B=1"]])
def test_a_pair_that_is_none_is_a_usage_error(arguments: list[str]) -> None:
    assert run("env", "--uri", "http://h", *arguments).exit_code == 2


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_core_requirements_fit_a_supported_runtime_and_no_other(runtime: str) -> None:
    core = [needed for needed in map(Requirement, requires("spark-tracking") or []) if not needed.marker]
    packages = {name: number for name, number in RUNTIMES[runtime]["packages"].items() if name not in RUNTIMES[runtime]["replaced"]}
    broken = [str(needed) for needed in core if needed.name in packages and not needed.specifier.contains(packages[needed.name])]
    assert (not broken) is RUNTIMES[runtime]["supported"], broken
    assert not {"pyspark", "delta-spark", "mlflow"} & {needed.name for needed in core}


@pytest.mark.slow
@pytest.mark.parametrize(("extra", "further"), [("", set()), ("[azure]", {"azure-storage-blob"})], ids=["core", "azure"])
@pytest.mark.parametrize("runtime", [name for name, data in RUNTIMES.items() if data["supported"]])
def test_the_wheel_installs_beside_the_runtimes_packages_and_replaces_only_those_that_the_docs_name(
    runtime: str, extra: str, further: set[str], tmp_path: Path
) -> None:
    packages, replaced = RUNTIMES[runtime]["packages"], {*RUNTIMES[runtime]["replaced"], *further}
    keep = tmp_path / "keep.txt"
    keep.write_text("".join(f"{name}=={number}\n" for name, number in packages.items() if name not in replaced))
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        "-",
        "--constraint",
        str(keep),
    ]
    command += ["--python-version", RUNTIMES[runtime]["python"], "--only-binary=:all:", "--target", str(tmp_path / "t")]
    wheel = f"{wheel_of_this_checkout(tmp_path)}{extra}"
    done = subprocess.run([*command, wheel], capture_output=True, text=True, check=True, env={**os.environ, "PIP_NO_INPUT": "1"})
    chosen = {canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"] for item in json.loads(done.stdout)["install"]}
    assert "spark-tracking" in chosen
    assert not {"pyspark", "delta-spark", "mlflow"} & chosen.keys()
    assert {name for name in packages.keys() & chosen.keys() if chosen[name] != packages[name]} <= replaced
    assert not {name for name in replaced if name.startswith(("mlflow", "pyspark", "delta-"))}
    if not extra:
        docs = (ROOT / "docs/platforms/databricks.md").read_text()
        assert all(f"`{name}`" in docs for name in replaced)
