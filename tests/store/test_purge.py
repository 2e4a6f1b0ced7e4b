"""The trash of a lake: what `lake purge` takes, and what it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from spark_tracking.cli import main
from spark_tracking.lake import Lake


@pytest.fixture
def lake_with_trash(tmp_path: Path) -> tuple[MlflowClient, str, list[str]]:
    """A lake with a kept run, and a deleted one that has an artifact and points."""
    uri = f"delta://{tmp_path}/lake"
    client = MlflowClient(uri, uri)
    runs = [client.create_run("0").info.run_id for _ in range(2)]
    for run_id in runs:
        client.log_metric(run_id, "loss", 0.5)
        client.log_text(run_id, "hello", "note.txt")
    client.delete_run(runs[1])
    return client, uri, runs


def test_purge_leaves_what_the_retention_still_covers(lake_with_trash: tuple[MlflowClient, str, list[str]]) -> None:
    client, uri, runs = lake_with_trash
    assert CliRunner().invoke(main, ["lake", "purge", uri]).exit_code == 0
    assert client.get_run(runs[1]).info.lifecycle_stage == "deleted"


def test_a_dry_run_says_what_would_go_and_removes_nothing(lake_with_trash: tuple[MlflowClient, str, list[str]]) -> None:
    client, uri, runs = lake_with_trash
    said = CliRunner().invoke(main, ["lake", "purge", uri, "--older-than-days", "0", "--dry-run"]).output
    assert "would go" in said
    assert client.get_run(runs[1]).info.lifecycle_stage == "deleted"


def test_purge_takes_the_run_its_rows_and_its_artifacts(lake_with_trash: tuple[MlflowClient, str, list[str]]) -> None:
    client, uri, runs = lake_with_trash
    folders = [Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://")) for run_id in runs]
    done = CliRunner().invoke(main, ["lake", "purge", uri, "--older-than-days", "0"])
    assert done.exit_code == 0, done.output
    with pytest.raises(Exception, match="not found"):
        client.get_run(runs[1])
    assert client.get_run(runs[0]).data.metrics == {"loss": 0.5}
    assert [folder.exists() and any(folder.iterdir()) for folder in folders] == [True, False]
    lake = Lake.open(uri)
    assert set(lake.scan("run_metrics_history").read_all()["run_id"].to_pylist()) == {runs[0]}
    left = lake.scan("events", ["field"], f"id = '{runs[1]}'").read_all()["field"].to_pylist()
    assert left == ["purge"]
    assert lake.check().ok


def test_a_run_takes_what_it_measured_of_models_with_it(tmp_path: Path) -> None:
    client = MlflowClient(f"delta://{tmp_path}/lake")
    lake = Lake.open(f"delta://{tmp_path}/lake", create=True)
    kept, purged = (client.create_run("0").info.run_id for _ in range(2))
    model_id = client.create_logged_model("0").model_id

    def measured() -> list[str]:
        return [metric.run_id for metric in client.get_logged_model(model_id).metrics or ()]

    for run_id in (kept, purged):
        client.log_metric(run_id, "loss", 0.5, model_id=model_id)
    client.delete_run(purged)
    assert sorted(measured()) == sorted([kept, purged])
    lake.purge("run", [purged])
    assert measured() == [kept]
    lake.drop_purged()
    lake.rebuild()
    assert measured() == [kept] and lake.check().ok


def test_purge_never_touches_artifacts_outside_the_experiments_location(tmp_path: Path) -> None:
    uri = f"delta://{tmp_path}/lake"
    client = MlflowClient(uri, uri)
    run_id = client.create_run("0").info.run_id
    precious = tmp_path / run_id / "artifacts"
    precious.mkdir(parents=True)
    (precious / "thesis.tex").write_text("years of work")
    from spark_tracking.lake import Event

    Lake.open(uri).write([Event("run", run_id, "attr", "artifact_uri", f"file://{precious}")])
    client.delete_run(run_id)
    assert CliRunner().invoke(main, ["lake", "purge", uri, "--older-than-days", "0"]).exit_code == 0
    assert (precious / "thesis.tex").read_text() == "years of work"


def test_purge_goes_on_where_files_hold_other_runs_too(tmp_path: Path) -> None:
    uri = f"delta://{tmp_path}/lake"
    client = MlflowClient(uri, uri)
    runs = [client.create_run("0").info.run_id for _ in range(6)]
    for run_id in runs:
        client.log_metric(run_id, "loss", 0.5)
    lake = Lake.open(uri)
    lake.settle()
    lake.compact()
    for doomed in (runs[1], runs[4]):
        client.delete_run(doomed)
        assert CliRunner().invoke(main, ["lake", "purge", uri, "--older-than-days", "0"]).exit_code == 0
        lake.compact()
    assert {run.info.run_id for run in client.search_runs(["0"])} == {runs[i] for i in (0, 2, 3, 5)}
    assert lake.drop_purged() == 0
    assert lake.check().ok
