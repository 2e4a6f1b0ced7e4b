"""From a database into a lake: exact, once, and only what changed."""

from __future__ import annotations

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from spark_tracking.mirror import sync
from tests.sync.conftest import T0, shown


def test_everything_arrives_as_the_source_shows_it(database: str, lake_uri: str) -> None:
    result = sync(database, lake_uri)
    assert result.ok, result.failures
    assert shown(lake_uri) == shown(database)
    assert (result.things["run"].seen, result.things["run"].new, result.things["model_version"].new) == (6, 6, 2)
    assert result.points == 6 * 8 + 1


def test_the_second_time_nothing_is_written(database: str, lake_uri: str) -> None:
    sync(database, lake_uri)
    again = sync(database, lake_uri)
    assert (again.ok, again.wrote, again.things["run"].seen) == (True, 0, 6)


def test_without_its_bookmarks_a_sync_compares_all_and_still_writes_nothing(database: str, lake_uri: str) -> None:
    import shutil

    from spark_tracking.address import LakeUri

    sync(database, lake_uri)
    shutil.rmtree(LakeUri.parse(lake_uri).path / "_sync")
    assert sync(database, lake_uri).wrote == 0
    assert sync(database, lake_uri, verify=True).wrote == 0


def test_changes_to_old_runs_are_found_and_only_they_are_written(database: str, lake_uri: str) -> None:
    sync(database, lake_uri)
    client = MlflowClient(database, registry_uri=database)
    runs = {r.info.run_name: r.info.run_id for r in client.search_runs(["1"])}
    client.set_tag(runs["run 0"], "late", "yes")
    client.delete_tag(runs["run 1"], "i")
    client.delete_run(runs["run 2"])
    client.log_batch(runs["run 3"], [Metric("acc", 9.0, T0 - 5, 1)])  # behind the latest step
    client.delete_registered_model_alias("wine", "champion")
    client.delete_model_version("wine", "1")
    result = sync(database, lake_uri)
    assert shown(lake_uri) == shown(database)
    assert (result.things["run"].changed, result.things["run"].new, result.points) == (4, 0, 1)
    assert sync(database, lake_uri).wrote == 0


def test_what_was_changed_in_the_lake_stays_until_the_source_changes_the_same_value(database: str, lake_uri: str) -> None:
    sync(database, lake_uri)
    theirs, ours = MlflowClient(database), MlflowClient(lake_uri)
    run = theirs.search_runs(["1"], "attributes.run_name = 'run 0'")[0].info.run_id
    ours.set_tag(run, "i", "ours")
    ours.set_tag(run, "note", "ours")
    theirs.set_tag(run, "other", "theirs")
    sync(database, lake_uri)
    tags = ours.get_run(run).data.tags
    assert (tags["i"], tags["note"], tags["other"]) == ("ours", "ours", "theirs")
    theirs.set_tag(run, "i", "theirs")
    sync(database, lake_uri)
    assert ours.get_run(run).data.tags["i"] == "theirs"


def test_two_sources_of_the_same_names_do_not_mix(database: str, lake_uri: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from tests.sync.conftest import write_history

    other = f"sqlite:///{tmp_path / 'other.db'}"
    write_history(other, tmp_path / "artifacts")
    assert sync(database, lake_uri).ok
    assert sync(other, lake_uri).ok
    client = MlflowClient(lake_uri, registry_uri=lake_uri)
    first, second = client.get_experiment_by_name("vision"), client.get_experiment_by_name("vision (other)")
    assert first is not None and second is not None
    assert [len(client.search_runs([e.experiment_id])) for e in (first, second)] == [5, 5]
    assert {m.name for m in client.search_registered_models()} == {"wine", "wine (other)"}
    assert sync(database, lake_uri).wrote == sync(other, lake_uri).wrote == 0


def test_a_dry_run_tells_and_changes_nothing(database: str, lake_uri: str) -> None:
    from spark_tracking.address import LakeUri

    told = sync(database, lake_uri, dry_run=True)
    assert (told.things["run"].new, told.points, LakeUri.parse(lake_uri).path.exists()) == (6, 49, False)
    done = sync(database, lake_uri)
    assert (done.things["run"], done.points) == (told.things["run"], told.points)


def test_only_the_experiments_and_runs_that_were_asked_for(database: str, lake_uri: str) -> None:
    sync(database, lake_uri, experiments=["vision"], filter="attributes.status = 'FAILED'", models="none")
    client = MlflowClient(lake_uri, registry_uri=lake_uri)
    experiments = client.search_experiments(view_type=3)
    assert {e.name for e in experiments} == {"Default", "vision"}
    runs = client.search_runs([e.experiment_id for e in experiments], run_view_type=3)
    assert {r.info.run_name for r in runs} == {"run 1", "run 3", "run 5"}
    assert list(client.search_registered_models()) == []


def test_a_lake_into_another_lake(database: str, lake_uri: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    second = f"delta://{tmp_path / 'second'}"
    sync(database, lake_uri)
    assert sync(lake_uri, second).ok
    assert shown(second) == shown(database)
    again = sync(lake_uri, second)
    assert (again.wrote, again.things["run"].seen, again.things["model_version"].seen) == (0, 6, 2)
    run = MlflowClient(lake_uri).search_runs(["1"])[0].info.run_id
    MlflowClient(lake_uri).set_tag(run, "late", "yes")
    assert sync(lake_uri, second).wrote == 1
    assert shown(second) == shown(lake_uri)


def test_an_unchanged_lake_is_neither_listed_nor_written(database: str, lake_uri: str, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from spark_tracking.mirror.source import Source

    second = f"delta://{tmp_path / 'second'}"
    sync(database, lake_uri)
    sync(lake_uri, second)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(Source, "rows", None)
    assert sync(lake_uri, second).wrote == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
