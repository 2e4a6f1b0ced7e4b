"""The command `spark-tracking sync`, as a shell runs it, and the same as a job."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from click.testing import CliRunner
from mlflow.tracking import MlflowClient

import spark_tracking as st
from spark_tracking.address import LakeUri
from spark_tracking.cli import main
from spark_tracking.lake import Event, Lake
from spark_tracking.store.maintain import Maintained, maintain
from tests.sync.conftest import T0, shown


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["sync", *arguments])
    return result.exit_code, result.output


def test_a_shell_gets_a_table_json_and_exit_codes(database: str, lake_uri: str) -> None:
    command = [str(Path(sys.executable).parent / "spark-tracking"), "sync"]
    path = str(LakeUri.parse(lake_uri).path)
    first = subprocess.run([*command, database, path], capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert [line.split() for line in first.stdout.splitlines() if line.startswith(("runs", "points"))] == [
        ["runs", "6", "6", "0", "0"],
        ["points", "49"],
    ]
    second = subprocess.run([*command, database, path, "--json"], capture_output=True, text=True, check=False)
    told = json.loads(second.stdout)
    assert (told["ok"], told["points"], told["things"]["run"]) == (True, 0, {"seen": 6, "new": 0, "changed": 0, "failed": 0, "written": 0})


def test_wrong_usage_exits_with_2_and_says_what_is_right(database: str, lake_uri: str) -> None:
    code, output = run(database, lake_uri, "--since", "yesterday")
    assert code == 2 and "ISO 8601" in output
    code, output = run(database, lake_uri, "--experiment", "nowhere")
    assert code == 2 and "nowhere" in output
    code, output = run(lake_uri, lake_uri)
    assert code != 0
    code, output = run(database, "sqlite:///other.db")
    assert code == 2 and "no target" in output


def test_a_run_that_cannot_be_copied_is_listed_and_makes_the_exit_code_1(database: str, lake_uri: str) -> None:
    taken = MlflowClient(database).search_runs(["1"])[0].info.run_id
    values = {"created": "1", "experiment_id": "0", "lifecycle_stage": "active", "created_by": "bob"}
    values |= {"status": "RUNNING", "start_time": "1", "run_name": "theirs", "artifact_uri": "file:///tmp/theirs"}
    Lake.open(lake_uri, create=True).write([Event("run", taken, "attr", key, value) for key, value in values.items()])
    code, output = run(database, lake_uri)
    assert code == 1
    assert f"FAILED run {taken}: The lake has a run of this id that did not come from this source" in output
    assert len(shown(lake_uri)["runs"]) == 6


def test_options_choose(database: str, lake_uri: str) -> None:
    code, output = run(database, lake_uri, "--experiment", "vision", "--since", str(T0 + 3), "--models", "none", "--json")
    told = json.loads(output)
    assert (code, told["things"]["run"]["new"], told["things"]["registered_model"]["seen"]) == (0, 3, 0)
    assert json.loads(run(database, lake_uri, "--dry-run", "--json")[1])["things"]["run"]["new"] == 3
    assert len(shown(lake_uri)["runs"]) == 3


def test_files_are_copied_once_and_checked(database: str, lake_uri: str, tmp_path: Path) -> None:
    client = MlflowClient(database)
    run_id = client.search_runs(["1"])[0].info.run_id
    (tmp_path / "notes.txt").write_text("notes")
    client.log_artifact(run_id, str(tmp_path / "notes.txt"), "deep/er")
    told = json.loads(run(database, lake_uri, "--artifacts", "copy", "--json")[1])
    assert (told["files"], told["bytes"]) == (1, 5)
    copied = Path(MlflowClient(lake_uri).get_run(run_id).info.artifact_uri.removeprefix("file://")) / "deep" / "er" / "notes.txt"
    assert copied.is_relative_to(LakeUri.parse(lake_uri).path) and copied.read_text() == "notes"
    copied.write_text("NOTES")
    assert json.loads(run(database, lake_uri, "--artifacts", "copy", "--verify", "--json")[1])["files"] == 1
    assert copied.read_text() == "notes"


def test_follow_finds_what_is_written_meanwhile_until_it_is_stopped(database: str, lake_uri: str) -> None:
    command = [str(Path(sys.executable).parent / "spark-tracking"), "sync", database, lake_uri, "--follow", "0.2", "--json"]
    # A shell's background jobs inherit that Ctrl+C is ignored.
    reset = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=reset)  # noqa: PLW1509
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())["things"]["run"]["new"] == 6
        late = MlflowClient(database).create_run("1", run_name="late").info.run_id
        for _ in range(50):
            if json.loads(process.stdout.readline())["things"]["run"]["new"]:
                break
        assert late in shown(lake_uri)["runs"]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_the_job_is_the_same_call(database: str, lake_uri: str) -> None:
    seen: list[tuple[str, int]] = []
    assert st.sync(database, lake_uri, progress=lambda kind, count: seen.append((kind, count))).things["run"].new == 6
    assert ("runs to go", 6) in seen and sum(count for kind, count in seen if kind == "run") == 6
    assert st.sync(database, lake_uri).wrote == 0
    done = maintain(lake_uri)
    assert isinstance(done, Maintained)
    assert {step for step, _, _ in done.rows()} == {"refresh", "drop purged", "compact", "vacuum", "purge"}
    assert "files of events" in str(done)
    assert st.sync(database, lake_uri).wrote == 0
