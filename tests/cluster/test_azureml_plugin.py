"""Microsoft's azureml-mlflow as it is, in an environment of its own (it wants an older MLflow), on a cluster that our start set up.

Azure is `fake_azure`: real TLS, tokens that live an hour of a clock that the job moves, calls handed on to a real `mlflow server`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import mlflow
import pytest

from .fake_azure import LIFE, PRINCIPAL, TRACKING_URI, WORKSPACE, Azure, running
from .test_init_script import SCRIPT, node_with_runtime, wheel_of_this_checkout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# The clock of the test in this process; a worker process of Spark moves its own to it in the same way.
MOVE_CLOCK = """
    import os, time

    def move_clock():
        if not hasattr(time, "real"):
            time.real = time.time
            time.time = lambda: time.real() + float(open(os.environ["CLOCK"]).read())

    def an_hour_later():
        ahead = float(open(os.environ["CLOCK"]).read())
        open(os.environ["CLOCK"], "w").write(str(ahead + 3600))

    move_clock()
    import mlflow
"""
JOB_OF_SIXTEEN_HOURS = (
    MOVE_CLOCK
    + """
    from pyspark.sql import SparkSession
    from spark_tracking.cluster.executors import executor_run, executor_tracking

    with mlflow.start_run() as run:
        for hour in range(8):
            mlflow.log_metric("on_driver", hour, hour)
            an_hour_later()
        tracking = executor_tracking()

        def work(batches):
            move_clock()
            for batch in batches:
                with executor_run(tracking, key="night", name="night") as child:
                    for hour in range(8):
                        child.log_metric("on_worker", hour, hour)
                        child.flush()
                        an_hour_later()
                yield batch

        spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
        spark.range(0, 1, 1, 1).mapInPandas(work, "id long").count()
    print("logged to", run.info.run_id)
"""
)
LITTLE_JOB = (
    MOVE_CLOCK
    + """
    mlflow.set_experiment("little")
    with mlflow.start_run() as run:
        mlflow.log_metric("m", 1.0)
    print("logged to", run.info.run_id)
"""
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A node's Python, where `spark-tracking[azure]` was installed beside the runtime's packages."""
    folder = tmp_path_factory.mktemp("azureml")
    node = node_with_runtime(folder, without=("mlflow", "azure"))
    install = [node, "-m", "pip", "install", "--quiet", f"{wheel_of_this_checkout(folder)}[azure]", "pandas<3"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return node


@pytest.fixture
def azure(tmp_path: Path, server: str) -> Iterator[tuple[Azure, dict[str, str]]]:
    with running(tmp_path, server) as (state, leads_there):
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "JAVA_HOME") if name in os.environ}
        yield state, {**kept, **leads_there, "CLOCK": str(state.clock), "MLFLOW_DISABLE_TELEMETRY": "true"}


def start(python: str, root: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The cluster's start, for which the region is found by one call."""
    names = ("SUBSCRIPTION", "RESOURCE_GROUP", "WORKSPACE")
    settings = {f"SPARK_TRACKING_AZURE_{name}": part for name, part in zip(names, WORKSPACE, strict=True)}
    settings |= {"SPARK_TRACKING_INIT_ROOT": str(root), "SPARK_TRACKING_PYTHON": python, "SPARK_TRACKING_EXPERIMENT": "the/{job}"}
    return subprocess.run([SCRIPT], env={**environ, **settings}, capture_output=True, text=True, check=False, timeout=120)


def run(python: str, root: Path, environ: dict[str, str], job: str) -> subprocess.CompletedProcess[str]:
    """A job in a login shell of the node."""
    file = root / "nightly.py"
    file.write_text(dedent(job))
    command = f". {root}/etc/profile.d/spark-tracking.sh; exec {python} {file}"
    shell = {**environ, "PYSPARK_PYTHON": python}
    return subprocess.run(
        ["bash", "-c", command], env=shell, capture_output=True, text=True, check=False, timeout=600, stdin=subprocess.DEVNULL, cwd=root
    )


def test_a_job_of_sixteen_hours_renews_its_token_on_driver_and_worker(
    azure: tuple[Azure, dict[str, str]], python: str, tmp_path: Path, server: str
) -> None:
    state, environ = azure
    environ |= PRINCIPAL
    begun = start(python, tmp_path, environ)
    assert TRACKING_URI in begun.stderr, begun.stderr
    assert "hush" not in begun.stderr
    done = run(python, tmp_path, environ, JOB_OF_SIXTEEN_HOURS)
    assert done.returncode == 0, done.stderr
    assert float(state.clock.read_text()) == 16 * LIFE
    assert state.expired == 0
    assert state.prompts == 0
    assert 16 <= len(state.tokens) <= 24  # one an hour, and each process's first
    client = mlflow.MlflowClient(server)
    parent = client.get_run(done.stdout.split("logged to ")[1].split()[0])
    assert client.get_experiment(parent.info.experiment_id).name == "the-nightly"  # Azure ML takes no slash
    assert [point.step for point in client.get_metric_history(parent.info.run_id, "on_driver")] == list(range(8))
    (child,) = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert [point.step for point in client.get_metric_history(child.info.run_id, "on_worker")] == list(range(8))


def test_a_managed_identity_is_enough(azure: tuple[Azure, dict[str, str]], python: str, tmp_path: Path) -> None:
    state, environ = azure
    begun = start(python, tmp_path, environ)
    assert TRACKING_URI in begun.stderr, begun.stderr
    done = run(python, tmp_path, environ, LITTLE_JOB)
    assert done.returncode == 0, done.stderr
    assert (state.expired, state.prompts) == (0, 0)


@pytest.mark.parametrize("identity", [{}, PRINCIPAL], ids=["none", "a wrong secret"])
def test_without_an_identity_a_job_fails_soon_and_nobody_is_asked_to_log_in(
    azure: tuple[Azure, dict[str, str]], python: str, tmp_path: Path, identity: dict[str, str]
) -> None:
    state, environ = azure
    environ |= identity
    assert TRACKING_URI in start(python, tmp_path, environ).stderr
    state.refuse = True  # from here on
    done = run(python, tmp_path, environ, "import os, webbrowser; webbrowser.open = lambda *_, **__: os._exit(9)\n" + dedent(LITTLE_JOB))
    assert done.returncode == 1
    assert ("AADSTS7000215" if identity else "Nobody is asked to log in") in done.stderr
    assert state.prompts == 0
    assert "hush" not in done.stderr + done.stdout


def test_the_doctor_tells_when_the_token_ends_and_what_goes_together(
    azure: tuple[Azure, dict[str, str]], python: str, tmp_path: Path
) -> None:
    _, environ = azure
    environ |= PRINCIPAL
    start(python, tmp_path, environ)
    command = f". {tmp_path}/etc/profile.d/spark-tracking.sh; exec {Path(python).parent}/spark-tracking doctor"
    done = subprocess.run(["bash", "-c", command], env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "expires in 60 minutes" in done.stdout or "expires in 59 minutes" in done.stdout
    assert "azureml-mlflow" in done.stdout
    assert "hush" not in done.stdout + done.stderr
