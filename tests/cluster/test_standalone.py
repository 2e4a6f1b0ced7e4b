"""A real standalone cluster (a master and two workers as processes) that starts with what the init script wrote."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import mlflow
import pytest

from tests.servers import free_port

from .conftest import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SCRIPT = Path(__file__).parents[2] / "init_scripts" / "spark-tracking-init.sh"

JOB_WITHOUT_TRACKING_CODE = """
    import mlflow
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.appName("nightly").getOrCreate()
    with mlflow.start_run():
        mlflow.log_metric("on_driver", 1.0)

    def score(batches):
        import mlflow
        for batch in batches:
            with mlflow.start_run():
                mlflow.log_metric("on_executor", float(len(batch)))
            yield batch

    print("rows", spark.range(0, 40, 1, 4).mapInPandas(score, "id long").count())
"""

JOB_THAT_FAILS_NOW_AND_THEN = """
    import os, time, mlflow, spark_tracking, pandas as pd
    from pyspark import TaskContext
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.appName("search").getOrCreate()

    def fit(frame):
        group, attempt = int(frame["id"].iloc[0]), TaskContext.get().attemptNumber()
        with spark_tracking.executor_run(tracking, key=group) as run:
            for step in range(20):
                run.log_metric("loss", group / (step + 1), step)
            if attempt == 0 and group == 3:
                raise OSError("the disk of this node is odd today")
            if attempt == 0 and group == 5:
                os._exit(1)  # killed, as by the kernel when memory is short
            if attempt == 0 and group == 6:
                time.sleep(25)  # slow: Spark starts a speculative copy
        return pd.DataFrame({"run_id": [run.run_id]})

    with mlflow.start_run() as parent:
        tracking = spark_tracking.executor_tracking()
        rows = spark.range(0, 8, 1, 8).groupby("id").applyInPandas(fit, "run_id string").collect()
    print("parent", parent.info.run_id, "children", len({row.run_id for row in rows}))
"""


@dataclass
class Cluster:
    """Its scratch root, its master's address, and the environment of a shell on one of its nodes."""

    root: Path
    master: str
    environ: dict[str, str]

    def submit(self, job: str, *options: str) -> subprocess.CompletedProcess[str]:
        """`spark-submit`, whose driver reads spark-env.sh."""
        file = self.root / "job.py"
        file.write_text(dedent(job))
        command = [f"{self.environ['SPARK_HOME']}/bin/spark-submit", "--master", self.master, "--driver-memory", "512m"]
        command += ["--conf", "spark.executor.memory=512m", "--conf", "spark.ui.enabled=false", *options, str(file)]
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False, timeout=600, cwd=self.root)

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """A login shell, as Jupyter or a plain `python job.py` has it."""
        script = f". {self.root}/etc/profile.d/spark-tracking.sh; {command}"
        return subprocess.run(
            ["bash", "-c", script], env=self.environ, capture_output=True, text=True, check=False, timeout=600, cwd=self.root
        )

    def doctor(self) -> tuple[int, list[dict[str, str]]]:
        done = self.shell(f"exec {Path(sys.executable).parent}/spark-tracking doctor --json --spark --master {self.master}")
        found: list[dict[str, str]] = json.loads(done.stdout[done.stdout.index("{") :])["findings"]
        return done.returncode, found


def prepare(root: Path, **settings: str) -> tuple[dict[str, str], subprocess.CompletedProcess[str]]:
    """Run the init script as root would, with `root` for /."""
    import pyspark

    (root / "conf").mkdir(parents=True, exist_ok=True)
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "SPARK_HOME": os.path.dirname(pyspark.__file__),
        "SPARK_CONF_DIR": str(root / "conf"),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_LOG_DIR": str(root),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    if "JAVA_HOME" in os.environ:
        environ["JAVA_HOME"] = os.environ["JAVA_HOME"]
    script = {
        **environ,
        **settings,
        "SPARK_TRACKING_INIT_ROOT": str(root),
        "SPARK_CONF_DIR": "/conf",
        "SPARK_TRACKING_PYTHON": sys.executable,
    }
    return environ, subprocess.run([SCRIPT], env=script, capture_output=True, text=True, check=False)


def running(root: Path, environ: dict[str, str]) -> Iterator[Cluster]:
    """The daemons, started with nothing but spark-env.sh to tell them where to track."""
    port = free_port()
    master = f"spark://127.0.0.1:{port}"
    daemon = [f"{environ['SPARK_HOME']}/bin/spark-class"]
    commands = [[*daemon, "org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0"]]
    for number in (1, 2):
        worker = ["--cores", "1", "--memory", "600m", "--webui-port", "0", "--host", "127.0.0.1", "--work-dir", str(root / f"work{number}")]
        commands.append([*daemon, "org.apache.spark.deploy.worker.Worker", *worker, master])
    logs = root / "daemons.log"
    with logs.open("wb") as log:
        daemons = [subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True) for command in commands]
        try:
            wait_for(lambda: logs.read_text(errors="replace").count("Registering worker") == 2, "the cluster")
            yield Cluster(root, master, environ)
        finally:
            for process in daemons:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module", params=["server", "lake"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    root = tmp_path_factory.mktemp(f"cluster-{request.param}")
    uri = request.getfixturevalue("server") if request.param == "server" else f"delta://{root}/lake"
    environ, done = prepare(root, SPARK_TRACKING_URI=uri, SPARK_TRACKING_EXPERIMENT="fleet/{user}", SPARK_TRACKING_STRICT="true")
    assert done.returncode == 0, done.stderr
    for found in running(root, environ):
        mlflow.set_tracking_uri(uri)
        yield found


@pytest.fixture(autouse=True)
def client(cluster: Cluster) -> mlflow.MlflowClient:
    file = (cluster.root / "etc/spark-tracking/spark-tracking-env.sh").read_text()
    uri = re.search(r"MLFLOW_TRACKING_URI='?([^'\n]+)", file)
    assert uri
    mlflow.set_tracking_uri(uri[1])
    return mlflow.MlflowClient()


def runs_of(client: mlflow.MlflowClient, metric: str) -> list[mlflow.entities.Run]:
    number = next(found.experiment_id for found in client.search_experiments() if found.name.startswith("fleet/"))
    return list(client.search_runs([number], f"metrics.{metric} > 0"))


def test_a_job_and_its_executors_log_to_the_server_with_no_code(cluster: Cluster, client: mlflow.MlflowClient) -> None:
    done = cluster.submit(JOB_WITHOUT_TRACKING_CODE)
    assert "rows 40" in done.stdout, done.stderr
    (driver,) = runs_of(client, "on_driver")
    executors = runs_of(client, "on_executor")
    assert sum(run.data.metrics["on_executor"] for run in executors) == 40
    assert driver.data.tags["spark_tracking.job"] == "nightly"
    assert driver.data.tags["spark_tracking.cluster"] == "127.0.0.1"
    assert all("stage" in run.data.tags["spark_tracking.task"] for run in executors)
    assert len({found.name for found in client.search_experiments() if found.name != "Default"}) == 1


def test_a_driver_from_a_login_shell_tracks_to_the_same_server(cluster: Cluster, client: mlflow.MlflowClient) -> None:
    done = cluster.shell(f"exec {sys.executable} -c 'import mlflow; mlflow.log_metric(\"in_shell\", 1.0)'")
    assert done.returncode == 0, done.stderr
    assert len(runs_of(client, "in_shell")) == 1


def test_each_point_arrives_once_though_tasks_fail_are_killed_and_are_copied(cluster: Cluster, client: mlflow.MlflowClient) -> None:
    options = {"spark.speculation": "true", "spark.speculation.quantile": "0.5", "spark.speculation.minTaskRuntime": "3s"}
    options |= {"spark.sql.adaptive.enabled": "false", "spark.sql.shuffle.partitions": "8"}
    done = cluster.submit(JOB_THAT_FAILS_NOW_AND_THEN, *(part for name, text in options.items() for part in ("--conf", f"{name}={text}")))
    assert "children 8" in done.stdout, done.stderr
    parent = done.stdout.split("parent ")[1].split()[0]
    (experiment,) = {found.experiment_id for found in client.search_experiments() if found.name.startswith("fleet/")}
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
    assert sorted(run.info.run_name for run in children) == [str(group) for group in range(8)]
    assert {run.info.status for run in children} == {"FINISHED"}
    for run in children:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
        assert sorted(steps) == list(range(20)), run.info.run_name


def test_the_doctor_finds_a_healthy_cluster_and_then_the_daemons_that_are_too_old(cluster: Cluster, client: mlflow.MlflowClient) -> None:
    code, findings = cluster.doctor()
    assert code == 0, findings
    assert "2 executors track to" in str([found["text"] for found in findings if found["subject"] == "executors"])
    file = cluster.root / "etc/spark-tracking/spark-tracking-env.sh"
    before = file.read_text()
    try:
        _, done = prepare(cluster.root, SPARK_TRACKING_URI=mlflow.get_tracking_uri(), SPARK_TRACKING_EXPERIMENT="another")
        assert done.returncode == 0
        _, findings = cluster.doctor()
        old = [found for found in findings if "daemon is older" in found["text"]]
        assert len(old) == 2
        assert all("Restart" in found["fix"] for found in old)
    finally:
        file.write_text(before)


def test_wrong_settings_that_are_not_strict_start_the_cluster_and_say_why_everywhere(
    tmp_path: Path, cluster: Cluster, client: mlflow.MlflowClient
) -> None:
    environ, done = prepare(tmp_path, SPARK_TRACKING_URI="adbazureml://westeurope")
    assert done.returncode == 0
    assert "retired" in done.stderr
    for broken in running(tmp_path, environ):
        job = broken.submit(JOB_WITHOUT_TRACKING_CODE)
        assert "rows 40" in job.stdout, job.stderr
        assert "did not set up this cluster" in job.stdout  # where spark-submit puts the driver's standard error
        code, findings = broken.doctor()
        assert code == 1
        assert "retired" in findings[0]["text"]
        assert [found for found in findings if found["subject"] == "executor" and "retired" in found["text"]]


def test_wrong_settings_that_are_strict_do_not_start_it(tmp_path: Path, cluster: Cluster) -> None:
    _, done = prepare(tmp_path, SPARK_TRACKING_URI="adbazureml://westeurope", SPARK_TRACKING_STRICT="true")
    assert done.returncode == 1
    assert "retired" in done.stderr.splitlines()[-1]
