"""A short process that does one thing with a lake and ends: `python leaving.py <tracking uri> <what>`.

With a number behind it so many processes, forked from one that has only imported what they need, each with an end of its own;
what is printed are their exit codes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time

import mlflow

import spark_tracking as st


def fill(uri: str) -> None:
    """Thirty runs that are in the tables, and one that only a dead process' journal has."""
    mlflow.set_experiment("e")
    for i in range(30):
        with mlflow.start_run(run_name=f"r{i}"):
            mlflow.log_metrics({"m": float(i)}, step=0)
            mlflow.log_param("p", i)
    from spark_tracking.lake import Lake

    lake = Lake.open(uri)
    lake.compact()
    lake.close()
    os.environ["SPARK_TRACKING_FLUSH_SECONDS"] = "3600"
    with mlflow.start_run(run_name="late"):
        mlflow.log_metric("m", 1.0)
        os.kill(os.getpid(), signal.SIGKILL)


def search_runs(uri: str) -> None:
    assert len(mlflow.search_runs(["1"])) == 31


def get_run(uri: str) -> None:
    assert mlflow.get_run(_a_run()).data.params


def get_metric_history(uri: str) -> None:
    assert mlflow.MlflowClient().get_metric_history(_a_run(), "m")


def runs_list(uri: str) -> None:
    from mlflow.cli import cli

    cli(["runs", "list", "--experiment-id", "1"])


def read(uri: str) -> None:
    assert st.read("runs_latest", tracking_uri=uri).read_all().num_rows == 31


def read_points(uri: str) -> None:
    assert st.read("run_metrics_history", tracking_uri=uri).read_all().num_rows == 31


def read_partly(uri: str) -> None:
    """A reader that is let go of in the midst of its work."""
    reader = st.read("runs_latest", tracking_uri=uri)
    assert reader.read_next_batch().num_rows
    _KEPT.append(reader)


def fail(uri: str) -> None:
    """An exception, with all that has just been read alive in its frame."""
    found = mlflow.search_runs(["1"])
    raise ValueError(len(found))


def interrupted(uri: str) -> None:
    """Ctrl+C in the midst of reading."""

    def interrupt() -> None:
        time.sleep(random.uniform(0.0, 0.3))
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    threading.Thread(target=interrupt, daemon=True).start()
    while True:
        mlflow.search_runs(["1"])
        mlflow.get_run(_a_run())


def in_a_child(uri: str) -> None:
    """A forked child that reads and leaves as a process does, and its parent, which has read, too."""
    search_runs(uri)
    child = os.fork()
    search_runs(uri)
    if child:
        _, status = os.waitpid(child, 0)
        assert status == 0, status


_KEPT: list[object] = []


def _a_run() -> str:
    return str(mlflow.MlflowClient().search_runs(["1"], "params.p = '7'")[0].info.run_id)


def fork(times: int) -> None:
    """Return in each of so many children, a few at a time; the parent leaves."""
    import importlib

    for name in ("datafusion", "deltalake", "pandas", "pyarrow.dataset", "spark_tracking.delta.query", "spark_tracking.store.tracking"):
        importlib.import_module(name)
    codes: list[int] = []
    running: set[int] = set()
    while len(codes) < times:
        while len(running) < (os.cpu_count() or 1) and len(running) + len(codes) < times:
            child = os.fork()
            if not child:
                random.seed()
                return
            running.add(child)
        child, status = os.wait()
        running.remove(child)
        codes.append(os.waitstatus_to_exitcode(status))
    print(json.dumps(codes), flush=True)
    os._exit(0)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        fork(int(sys.argv[3]))
    mlflow.set_tracking_uri(sys.argv[1])
    globals()[sys.argv[2]](sys.argv[1])
