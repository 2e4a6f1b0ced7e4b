"""The trash of a lake: what `lake purge` takes, and what it leaves."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from spark_tracking.cli import main
from spark_tracking.lake import Event, Lake
from spark_tracking.store.tracking import LakeTrackingStore
from spark_tracking.store.trash import purge_deleted


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


@pytest.fixture
def doomed(tmp_path: Path) -> tuple[str, str, Path, Path]:
    """A lake, a run with an artifact in its trash, the run's folder, and a file of somebody else's."""
    uri = f"delta://{tmp_path}/lake"
    client = MlflowClient(uri, uri)
    run_id = client.create_run("0").info.run_id
    client.log_text(run_id, "hello", "note.txt")
    client.delete_run(run_id)
    precious = tmp_path / "victim" / "artifacts" / "thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    return uri, run_id, tmp_path / "lake" / "artifacts" / "0" / run_id, precious


def purge(uri: str, how: str) -> str:
    """Empty the trash at once; what was said."""
    if how == "purge":
        done = CliRunner().invoke(main, ["lake", "purge", uri, "--older-than-days", "0"])
        return done.output
    from mlflow.cli import gc

    result = CliRunner().invoke(gc, ["--backend-store-uri", uri, "--tracking-uri", uri])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("how", ["purge", "gc"])
@pytest.mark.parametrize(
    "forged",
    [
        "file://{lake}/artifacts/0/%2e%2e/%2e%2e/%2e%2e/victim/artifacts",
        "file://{lake}/artifacts/0/{run}/../../../../victim/artifacts",
        "file://{lake}/artifacts/0/{run}/%2e%2e/%2e%2e/%2e%2e/%2e%2e/victim/artifacts",
        "{lake}/../victim/artifacts",
        "file://{lake}",
        "file://{lake}/artifacts/0",
        "file://{lake}/artifacts/0/{run}/artifacts/../../kept/artifacts",
    ],
)
def test_no_writing_of_an_artifact_uri_leads_out_of_the_run_s_own_folder(
    forged: str, how: str, doomed: tuple[str, str, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, run_id, folder, precious = doomed
    kept = folder.with_name("kept") / "artifacts" / "model.bin"
    kept.parent.mkdir(parents=True)
    kept.write_text("model")
    text = forged.format(lake=uri.removeprefix("delta://"), run=run_id)
    Lake.open(uri).write([Event("run", run_id, "attr", "artifact_uri", text)])
    purge(uri, how)
    assert precious.read_text() == "years of work"
    assert kept.read_text() == "model" and (folder / "artifacts" / "note.txt").exists()
    assert Lake.open(uri).get("run", run_id) is None


@pytest.mark.parametrize("how", ["purge", "gc"])
@pytest.mark.parametrize("which", ["folder", "artifacts", "inside"])
def test_links_are_unlinked_and_never_followed(which: str, how: str, doomed: tuple[str, str, Path, Path]) -> None:
    uri, run_id, folder, precious = doomed
    link = {"folder": folder, "artifacts": folder / "artifacts", "inside": folder / "artifacts" / "more"}[which]
    if link.exists():
        shutil.rmtree(link)
    link.symlink_to(precious.parents[1] if which == "folder" else precious.parent)
    said = purge(uri, how)
    assert precious.read_text() == "years of work"
    assert not link.is_symlink() and "KEPT" not in said
    assert Lake.open(uri).get("run", run_id) is None


def test_a_location_that_is_a_link_of_the_lake_s_is_not_followed(doomed: tuple[str, str, Path, Path], tmp_path: Path) -> None:
    uri, run_id, folder, _ = doomed
    elsewhere = tmp_path / "elsewhere"
    folder.parent.rename(elsewhere)
    folder.parent.symlink_to(elsewhere)
    done = CliRunner().invoke(main, ["lake", "purge", uri, "--older-than-days", "0"])
    assert done.exit_code == 1 and f"KEPT: The run '{run_id}' stays in the trash" in done.output
    assert (elsewhere / run_id / "artifacts" / "note.txt").exists()


def test_a_lake_behind_a_link_is_purged_as_any(doomed: tuple[str, str, Path, Path], tmp_path: Path) -> None:
    uri, run_id, folder, _ = doomed
    (tmp_path / "linked").symlink_to(tmp_path / "lake")
    purge(f"delta://{tmp_path}/linked", "purge")
    assert not folder.exists() and Lake.open(uri).get("run", run_id) is None


@pytest.mark.parametrize("how", ["purge", "gc"])
def test_what_cannot_be_deleted_is_kept_and_told_and_the_rest_goes(
    how: str, doomed: tuple[str, str, Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uri, stuck, _, _ = doomed
    client = MlflowClient(uri, uri)
    other = client.create_run("0").info.run_id
    client.log_text(other, "hello", "note.txt")
    client.delete_run(other)
    rmtree = shutil.rmtree

    def failing(path: str, *args: Any, **options: Any) -> None:
        if stuck in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        rmtree(path, *args, **options)

    monkeypatch.setattr(shutil, "rmtree", failing)
    said = purge(uri, how) + caplog.text
    assert stuck in said and "stays in the trash" in said and "Permission denied" in said
    lake = Lake.open(uri)
    assert lake.get("run", stuck) is not None and lake.get("run", other) is None


def test_an_unknown_time_of_deletion_is_when_the_lake_learned_of_it(doomed: tuple[str, str, Path, Path]) -> None:
    uri, run_id, _, _ = doomed
    lake = Lake.open(uri)
    lake.write([Event("run", run_id, "attr", "deleted", None)])
    assert CliRunner().invoke(main, ["lake", "purge", uri]).exit_code == 0
    assert lake.get("run", run_id) is not None
    store = LakeTrackingStore(uri)
    assert store._get_deleted_runs(older_than=60_000) == []
    assert store._get_deleted_runs() == [run_id]


def test_an_experiment_waits_for_what_is_younger_in_it(tmp_path: Path) -> None:
    uri = f"delta://{tmp_path}/lake"
    client = MlflowClient(uri, uri)
    experiment = client.create_experiment("old")
    young = client.create_run(experiment).info.run_id
    client.delete_experiment(experiment)
    lake = Lake.open(uri)
    lake.write([Event("experiment", experiment, "attr", "deleted", "1000")])
    assert purge_deleted(uri)["experiment"] == []
    assert lake.get("run", young) is not None
    lake.write([Event("run", young, "attr", "deleted", "1000")])
    assert purge_deleted(uri) == {"run": [young], "logged_model": [], "experiment": [experiment]}


@pytest.mark.parametrize("offset", [-1, 1 << 80, "x", None])
def test_a_page_token_that_is_none_is_a_wrong_value(offset: Any, doomed: tuple[str, str, Path, Path]) -> None:
    client = MlflowClient(doomed[0], doomed[0])
    token = base64.b64encode(json.dumps({"offset": offset, "experiment_ids": ["0"]}).encode()).decode()
    searches = (
        lambda: client.search_runs(["0"], page_token=token),
        lambda: client.search_experiments(page_token=token),
        lambda: client.search_registered_models(page_token=token),
        lambda: client.search_model_versions(page_token=token),
        lambda: client.search_logged_models(["0"], page_token=token if offset else "W10="),
        lambda: client.search_runs(["0"], page_token="W10="),
    )
    for search in searches:
        with pytest.raises(MlflowException) as refused:
            search()
        assert refused.value.get_http_status_code() == 400
