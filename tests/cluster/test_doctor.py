"""The doctor: what applies, by which rule, whether it works, and what to do."""

from __future__ import annotations

import base64
import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import pytest
from click.testing import CliRunner
from mlflow.entities import Run, ViewType

import spark_tracking
from spark_tracking.cli import main
from spark_tracking.cluster import doctor, nodes
from spark_tracking.cluster.doctor import examine, token_expiry
from spark_tracking.cluster.findings import ERROR, OK, WARNING, Finding, Report
from spark_tracking.cluster.nodes import compare, fingerprint_in, node_report
from spark_tracking.cluster.versions import unmet

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def findings(subject: str, *, read_only: bool = True) -> list[Finding]:
    return [finding for finding in examine(read_only=read_only) if finding.subject == subject]


def test_a_healthy_server_is_read_and_written_and_the_probe_is_gone(server: str) -> None:
    mlflow.set_tracking_uri(server)
    assert [finding.level for finding in findings("read", read_only=False) + findings("write", read_only=False)] == [OK, OK]
    assert not mlflow.search_runs(["0"], filter_string="tags.spark_tracking.doctor = 'true'", output_format="list")
    assert len(probes(ViewType.ALL)) == 1, "a server cannot forget it, so each look takes the same one"


def probes(view: int) -> list[Run]:
    return list(mlflow.MlflowClient().search_runs(["0"], "tags.`spark_tracking.doctor` = 'true'", view))


@pytest.mark.parametrize("uri", ["delta://foo", "s3://bucket/lake", "delta://u:hush@foo"])
def test_an_address_that_cannot_be_right_is_not_blamed_on_the_network(uri: str) -> None:
    mlflow.set_tracking_uri(uri)
    (finding,) = findings("read")
    assert finding.level == ERROR and "Correct the tracking URI" in finding.fix and "hush" not in str(finding)
    assert uri.startswith("delta") or "delta+s3://bucket/lake" in finding.text


def test_a_lake_is_read_and_written(lake_uri: str) -> None:
    mlflow.set_tracking_uri(lake_uri)
    mlflow.search_experiments()
    assert [finding.level for finding in findings("read", read_only=False) + findings("write", read_only=False)] == [OK, OK]
    assert not probes(ViewType.ALL)


def test_a_lake_that_is_not_there_is_said_and_looking_does_not_make_it(lake_uri: str, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(lake_uri)
    (finding,) = findings("read")
    assert finding.level == ERROR
    assert "There is no lake" in finding.text
    assert not (tmp_path / "lake").exists()
    assert [finding.level for finding in findings("read", read_only=False)] == [WARNING, OK]  # proving that we may write makes it


def test_where_nothing_is_set_looking_makes_no_database(tmp_path: Path) -> None:
    assert "No tracking server is set" in findings("tracking")[1].text
    assert not list(tmp_path.iterdir())


def test_settings_that_nothing_has_applied_are_told(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_TRACKING_URI", "https://mlflow.example.com")
    finding = findings("settings")[-1]
    assert finding.level == WARNING
    assert "https://mlflow.example.com" in finding.text
    assert "use(spark)" in finding.fix


def test_each_rule_that_decides_the_server_is_named(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "set_tracking_uri" in findings("tracking")[0].text
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    assert "variable MLFLOW_TRACKING_URI" in findings("tracking")[0].text
    monkeypatch.setenv("SPARK_TRACKING_CONFIGURED", "abc")
    assert "spark_tracking.use" in findings("tracking")[0].text
    monkeypatch.setenv("SPARK_TRACKING_ENV_FILE", "/etc/spark-tracking/spark-tracking-env.sh")
    assert "by the cluster's start" in findings("tracking")[0].text


def test_each_rule_that_decides_the_experiment_is_named(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Default" in findings("experiment")[0].text
    monkeypatch.setenv("SPARK_TRACKING_EXPERIMENT", "team/{user}")
    monkeypatch.setenv("SPARK_USER", "ann")
    assert "team/ann, by SPARK_TRACKING_EXPERIMENT='team/{user}'" in findings("experiment")[0].text
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    assert "MLFLOW_EXPERIMENT_NAME" in findings("experiment")[0].text
    mlflow.set_experiment("code")
    assert "set_experiment" in findings("experiment")[0].text


def test_looking_creates_no_experiment(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_TRACKING_EXPERIMENT", "not-yet")
    list(examine())
    assert mlflow.get_experiment_by_name("not-yet") is None


def test_a_server_that_does_not_answer_is_said_within_seconds_with_a_fix() -> None:
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    begun = time.monotonic()
    (finding,) = findings("read")
    assert finding.level == ERROR
    assert finding.fix
    assert time.monotonic() - begun < 15


def test_a_server_that_accepts_and_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_REACH_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mlflow.set_tracking_uri(f"http://127.0.0.1:{silent.getsockname()[1]}")
        (finding,) = findings("read")
    assert finding.level == ERROR
    assert "no answer within" in finding.text


def test_a_lake_that_may_only_be_read_is_said_with_a_fix(tmp_path: Path) -> None:
    """As a user who owns none of it; root may write anywhere."""
    lake = tmp_path / "lake"
    client = mlflow.MlflowClient(f"delta://{lake}")
    client.create_experiment("there")
    code = "from spark_tracking.cluster.doctor import examine; print(*[f'{f.level} {f.subject} {f.fix}' for f in examine()], sep='\\n')"
    environ = {**os.environ, "MLFLOW_TRACKING_URI": f"delta://{lake}", "HOME": "/"}
    if os.geteuid() == 0:
        command = ["unshare", "--mount", "sh", "-c", f'mount --bind {lake} {lake} && mount -o remount,bind,ro {lake} && exec "$@"', "sh"]
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
            pytest.skip("root without the right to mount cannot be kept from writing")
    else:
        command = []
        for folder, _, _ in os.walk(lake):
            os.chmod(folder, 0o555)
    done = subprocess.run([*command, sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert "ok read" in done.stdout, done.stderr
    assert "error write Check that" in done.stdout


@pytest.mark.parametrize(
    "environ",
    [
        {"SPARK_TRACKING_URI": "ftp://x"},
        {"SPARK_TRACKING_URI": "http://127.0.0.1:9", "SPARK_TRACKING_EXPERIMNT": "x", "MLFLOW_TRACKING_TOKEN": "t"},
        {"SPARK_TRACKING_URI": "delta:///nowhere/lake", "MLFLOW_EXPERIMENT_NAME": "x", "SPARK_TRACKING_OWN": "x"},
        {"SPARK_TRACKING_PROBLEM": "no", "DATABRICKS_RUNTIME_VERSION": "16.4"},
        {"SPARK_TRACKING_EXPERIMENT": "{usr}", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
    ],
)
def test_each_finding_that_is_not_ok_has_a_fix(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    found = [finding for finding in examine(read_only=True) if finding.level != OK]
    assert found
    assert all(finding.fix for finding in found), found


def test_no_secret_is_ever_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:hush-1@127.0.0.1:9")
    monkeypatch.setenv("SPARK_TRACKING_URI", "http://ann:hush-2@127.0.0.1:9")
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN", "AZURE_CLIENT_SECRET"):
        monkeypatch.setenv(name, "hush-3")
    report = Report(tuple(examine()))
    assert "MLFLOW_TRACKING_PASSWORD" in str(report)
    assert "hush" not in str(report) + report.to_json()


def jwt(expires: float) -> str:
    body = base64.urlsafe_b64encode(json.dumps({"exp": expires}).encode()).decode().rstrip("=")
    return f"head.{body}.signature"


def test_a_tokens_expiry_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    for minutes, level in ((-5, ERROR), (10, WARNING), (600, OK)):
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", jwt(time.time() + 60 * minutes))
        assert findings("credentials")[-1].level == level
    assert token_expiry("dapi0123") is None


def test_the_problem_of_a_start_is_the_first_finding(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_TRACKING_PROBLEM", "the package could not be installed")
    first = next(examine())
    assert (first.level, first.subject) == (ERROR, "start")
    assert "could not be installed" in first.text


def test_a_process_that_is_older_than_its_file_is_told(database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "env.sh"
    file.write_text("export SPARK_TRACKING_CONFIGURED=bbb\n")
    monkeypatch.setenv("SPARK_TRACKING_ENV_FILE", str(file))
    monkeypatch.setenv("SPARK_TRACKING_CONFIGURED", "aaa")
    (finding,) = findings("start")
    assert finding.level == WARNING
    assert "Restart" in finding.fix
    assert fingerprint_in(str(file)) == "bbb"


def test_an_old_databricks_runtime_is_told_what_works(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "15.4")
    (finding,) = findings("runtime")
    assert "%pip install" in finding.text
    assert "17.3" in finding.fix


def test_versions_that_break_what_a_package_declares_are_named() -> None:
    assert unmet("spark-tracking", {"spark-tracking": "0.1.0", "deltalake": "2.0.0"}) == [
        "spark-tracking 0.1.0 needs deltalake<1.7,>=1.6.0, and 2.0.0 is installed."
    ]
    assert "pandas" in unmet("spark-tracking", {"spark-tracking": "0.1.0", "pandas": "3.0.0"})[0]
    newer = {"spark-tracking": "0.1.0", "mlflow-skinny": "3.17.2"}
    assert unmet("spark-tracking", newer) == []
    assert "mlflow-skinny<=3.15" in unmet("spark-tracking", {**newer, "azureml-mlflow": "1.62.0"})[0]


def test_differences_between_driver_and_executors_are_shown_with_the_executor() -> None:
    driver = node_report()
    driver["environ"]["MLFLOW_TRACKING_URI"] = "http://h:5000"
    same = json.loads(json.dumps(driver))
    assert [finding.level for finding in compare(driver, {"a/1": same})] == [OK]
    other = json.loads(json.dumps(driver))
    other["environ"]["MLFLOW_TRACKING_URI"] = ""
    other["versions"]["mlflow-skinny"] = "2.1.0"
    other["held"] = "newer"
    found = list(compare(driver, {"a/1": same, "b/2": other}))
    assert {finding.level for finding in found} == {ERROR, WARNING}
    assert all("b/2" in finding.text for finding in found)
    assert all(finding.fix for finding in found)


def test_the_command_exits_by_health_and_prints_json(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    well = CliRunner().invoke(main, ["doctor", "--json", "--read-only"])
    assert json.loads(well.stdout)["healthy"] is True
    assert well.exit_code == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert CliRunner().invoke(main, ["doctor", "--read-only"]).exit_code == 1


def test_no_java_is_a_warning_with_what_to_do(database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    (finding,) = findings("Java")
    assert finding.level == WARNING
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    java.chmod(stat.S_IRWXU)
    (finding,) = findings("Java")
    assert finding.level == ERROR


def test_it_looks_where_there_is_no_pyspark(database: str) -> None:
    code = (
        "import sys; sys.modules['pyspark'] = None; from spark_tracking.cluster.doctor import examine; "
        "print({finding.level for finding in examine(read_only=True) if finding.subject == 'read'})"
    )
    environ = {**os.environ, "MLFLOW_TRACKING_URI": database}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.strip() == "{'ok'}"


def test_a_session_has_its_executors_looked_at_too(spark: SparkSession, lake_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow.set_tracking_uri(lake_uri)  # in this process only: executors do not hear of it
    (finding,) = [found for found in spark_tracking.doctor(spark, read_only=True).findings if found.subject.startswith("executor")]
    assert finding.level == ERROR
    assert lake_uri in finding.text
    assert "executor_run" in finding.fix


@pytest.mark.parametrize("master", ["spark://127.0.0.1:9", "sc://127.0.0.1:9/;use_ssl=true", "spark://nowhere.invalid"])
def test_a_master_that_is_not_there_is_a_finding_at_once(master: str, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    begun = time.monotonic()
    done = CliRunner().invoke(main, ["doctor", "--read-only", "--json", "--master", master])
    assert time.monotonic() - begun < 30
    assert done.exit_code == 1
    (finding,) = [found for found in json.loads(done.stdout)["findings"] if found["subject"] == "Spark"]
    assert master in finding["text"]


def test_a_cluster_that_takes_up_no_job_is_told_and_not_waited_for(
    spark: SparkSession, lake_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.set_tracking_uri(lake_uri)
    monkeypatch.setattr(nodes, "_ANSWER_SECONDS", 0.01)
    (finding,) = [found for found in spark_tracking.doctor(spark, read_only=True).findings if found.subject == "executors"]
    assert finding.level == ERROR
    assert "free resources" in finding.text
