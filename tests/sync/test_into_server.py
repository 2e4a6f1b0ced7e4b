"""From a lake, or any other source, into a real `mlflow server`: the same things under the server's own ids, once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Dataset, DatasetInput, Metric
from mlflow.tracking import MlflowClient

from spark_tracking.address import LakeUri
from spark_tracking.errors import InvalidInput
from spark_tracking.mirror import sync
from spark_tracking.mirror import target_server as servers
from tests.servers import mlflow_server
from tests.sync.conftest import T0, portable
from tests.sync.proxy import Proxy


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for those tests whose experiments and models have names of their own."""
    folder = tmp_path_factory.mktemp("target")
    with mlflow_server(f"sqlite:///{folder / 'mlflow.db'}", folder) as (url, _):
        yield url


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[str]:
    """A server that nobody has used."""
    with mlflow_server(f"sqlite:///{tmp_path / 'target.db'}", tmp_path) as (url, _):
        yield url


@pytest.fixture
def family(lake_uri: str, request: pytest.FixtureRequest) -> tuple[MlflowClient, str, list[str]]:
    """A lake with an experiment of the test's name, and a parent and two children in it."""
    client = MlflowClient(lake_uri, registry_uri=lake_uri)
    name = request.node.name
    experiment = client.create_experiment(name)
    runs = [client.create_run(experiment, start_time=T0 + i, run_name=f"run {i}").info.run_id for i in range(3)]
    for child in runs[1:]:
        client.set_tag(child, "mlflow.parentRunId", runs[0])
    for i, run in enumerate(runs):
        client.log_batch(run, [Metric("acc", i + s / 10, T0 + s, s) for s in range(3)])
        client.set_terminated(run, "FINISHED", T0 + 100)
    return client, name, runs


def runs_of(url: str, name: str) -> dict[str, Any]:
    """The runs of an experiment by name, deleted ones too."""
    client = MlflowClient(url)
    experiment = client.get_experiment_by_name(name)
    return {} if experiment is None else {r.info.run_name: r for r in client.search_runs([experiment.experiment_id], run_view_type=3)}


def test_everything_arrives_under_new_ids_and_the_second_time_nothing_is_written(database: str, lake_uri: str, empty: str) -> None:
    sync(database, lake_uri)
    client = MlflowClient(lake_uri, registry_uri=lake_uri)
    client.create_model_version("wine", client.get_model_version("wine", "1").source, client.get_model_version("wine", "1").run_id)
    client.create_model_version("wine", client.get_model_version("wine", "1").source, client.get_model_version("wine", "1").run_id)
    client.delete_model_version("wine", "3")  # numbers stay: 1, 2, 4
    with Proxy(empty) as proxy:
        result = sync(lake_uri, proxy.url)
        assert result.ok, result.failures
        assert portable(empty) == portable(lake_uri)
        assert (result.things["run"].new, result.things["model_version"].new, result.points) == (6, 3, 49)
        proxy.requests.clear()
        files = sorted(LakeUri.parse(lake_uri).path.rglob("*"))
        again = sync(lake_uri, proxy.url)
        assert (again.wrote, again.failures) == (0, [])
        assert sorted(LakeUri.parse(lake_uri).path.rglob("*")) == files
        assert not [request for request in proxy.requests if "/runs/" in request or "log-batch" in request]
        change(lake_uri)
        assert sync(lake_uri, proxy.url).ok
        assert portable(empty) == portable(lake_uri)
        assert sync(lake_uri, proxy.url).wrote == 0


def change(uri: str) -> None:
    """All sorts of changes to old things."""
    client = MlflowClient(uri, registry_uri=uri)
    runs = {r.info.run_name: r.info.run_id for r in client.search_runs(["1"], run_view_type=3)}
    client.set_tag(runs["run 0"], "late", "yes")
    client.delete_tag(runs["run 1"], "i")
    client.delete_run(runs["run 2"])
    client.log_batch(runs["run 3"], [Metric("acc", 9.0, T0 - 5, 1)])  # behind the latest step
    client.restore_run(runs["run 5"])
    client.delete_registered_model_alias("wine", "champion")
    client.delete_model_version("wine", "1")
    client.set_registered_model_tag("wine", "owner", "you")


def test_without_bookmarks_the_tags_of_the_target_say_what_is_there(database: str, empty: str) -> None:
    assert sync(database, empty).ok
    assert portable(empty) == portable(database)
    assert sync(database, empty).wrote == 0


def test_versions_of_logged_models_and_repeated_points_arrive_as_a_dry_run_foretells(
    tmp_path: Path, lake_uri: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a database, which does not tell a version's model; from a lake, which holds points that a server's model takes once."""
    for source in (f"sqlite:///{tmp_path / 'source.db'}", lake_uri):
        name = f"registered from {source.partition(':')[0]}"
        client = MlflowClient(source, registry_uri=source)
        experiment = client.create_experiment(name)
        data = [Dataset(f"d{i}", str(i), "local", "{}") for i in range(2)]
        runs = [client.create_run(experiment, start_time=T0 + i, run_name=f"run {i}").info.run_id for i in range(4)]
        models = [client.create_logged_model(experiment, f"net {i}", runs[0]).model_id for i in range(2)]
        for run in runs:
            client.log_inputs(run, [DatasetInput(one) for one in data])
        for value in (0.5, 0.5, 0.7) if source == lake_uri else (0.5,):
            of = data[value > 0.6]
            client.log_metric(runs[0], "loss", value, T0, 0, model_id=models[0], dataset_name=of.name, dataset_digest=of.digest)
        client.create_registered_model(name)
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", source)  # where MLflow looks for a version's model, whatever the client's
            for model in models:
                client.create_model_version(name, f"models:/{model}", runs[0], model_id=model)
        foretold = sync(source, target, experiments=[name], models=name, dry_run=True)
        result = sync(source, target, experiments=[name], models=name)
        assert result.ok, result.failures
        for kind in ("experiment", "run", "logged_model", "registered_model", "model_version"):
            counts = [(r.things[kind].new, r.things[kind].failed) for r in (foretold, result)]
            assert counts[0] == counts[1], kind
        theirs = MlflowClient(target)
        versions = theirs.search_model_versions(f"name = '{name}'")
        copies = theirs.search_logged_models([e.experiment_id for e in theirs.search_experiments() if e.name == name])
        assert sorted(v.source for v in versions) == sorted(f"models:/{m.model_id}" for m in copies) and len(versions) == 2
        copy = runs_of(target, name)["run 0"].info.run_id
        assert {m.value for m in theirs.get_metric_history(copy, "loss")} == ({0.5, 0.7} if source == lake_uri else {0.5})
        assert sync(source, target, experiments=[name], models=name).wrote == 0


def test_a_dry_run_counts_the_versions_that_will_fail(family: Any, lake_uri: str, target: str) -> None:
    client, name, runs = family
    client.create_registered_model(name)
    client.create_model_version(name, f"runs:/{runs[0]}/model", runs[0])
    options: dict[str, Any] = {"experiments": [name], "models": name, "filter": "attributes.run_name != 'run 0'"}
    tallies = [sync(lake_uri, target, **options, dry_run=dry_run).things["model_version"] for dry_run in (True, False)]
    assert [(tally.new, tally.failed) for tally in tallies] == [(0, 1), (0, 1)]


def test_a_target_that_lost_an_experiment_for_good_gets_it_again(family: Any, lake_uri: str, tmp_path: Path, target: str) -> None:
    _, name, _ = family
    options: dict[str, Any] = {"experiments": [name], "models": "none"}
    assert sync(lake_uri, target, **options).things["run"].new == 3
    theirs = MlflowClient(target)
    experiment = theirs.get_experiment_by_name(name)
    assert experiment is not None
    theirs.delete_experiment_tag(experiment.experiment_id, servers.ORIGIN)  # as if it had gone: nothing there is known to be a copy
    theirs.rename_experiment(experiment.experiment_id, f"{name} lost")
    assert sync(lake_uri, target, **options).things["run"].new == 3
    assert len(runs_of(target, name)) == 3


def test_a_parent_that_comes_later_is_given_to_its_children(family: Any, lake_uri: str, target: str) -> None:
    _, name, _ = family
    assert sync(lake_uri, target, filter="attributes.run_name != 'run 0'", experiments=[name], models="none").ok
    assert "mlflow.parentRunId" not in runs_of(target, name)["run 1"].data.tags
    result = sync(lake_uri, target, experiments=[name], models="none")
    runs = runs_of(target, name)
    assert result.ok and len(runs) == 3
    assert {runs[f"run {i}"].data.tags["mlflow.parentRunId"] for i in (1, 2)} == {runs["run 0"].info.run_id}
    assert sync(lake_uri, target, experiments=[name], models="none").wrote == 0


def test_names_that_are_taken_on_the_target_are_left_alone(family: Any, lake_uri: str, target: str) -> None:
    _, name, _ = family
    theirs = MlflowClient(target)
    taken = theirs.create_experiment(name)
    theirs.delete_experiment(taken)
    assert sync(lake_uri, target, experiments=[name], models="none").ok
    assert runs_of(target, name) == {} and len(runs_of(target, f"{name} (lake)")) == 3


def test_what_was_deleted_on_the_target_stays_deleted_and_is_told(family: Any, lake_uri: str, target: str) -> None:
    client, name, runs = family
    assert sync(lake_uri, target, experiments=[name], models="none").ok
    theirs = MlflowClient(target)
    theirs.delete_run(runs_of(target, name)["run 1"].info.run_id)
    client.set_tag(runs[1], "late", "yes")
    assert sync(lake_uri, target, experiments=[name], models="none").wrote == 0
    assert runs_of(target, name)["run 1"].info.lifecycle_stage == "deleted"
    found = theirs.get_experiment_by_name(name)
    assert found is not None
    theirs.delete_experiment(found.experiment_id)
    client.set_tag(runs[2], "late", "yes")
    result = sync(lake_uri, target, experiments=[name], models="none")
    assert [f.kind for f in result.failures] == ["experiment"] and "deleted on the target" in result.failures[0].reason


def test_a_tag_that_is_removed_takes_no_other_with_it_whatever_its_name(family: Any, lake_uri: str, target: str) -> None:
    client, name, runs = family
    experiment = client.get_run(runs[0]).info.experiment_id
    odd = ["a#b", "a?b", "a b", "100% of it"]
    model = client.create_logged_model(experiment, "net", runs[0], tags=dict.fromkeys(["a", *odd], "1"))
    assert sync(lake_uri, target).ok
    for key in odd:
        client.delete_logged_model_tag(model.model_id, key)
    assert sync(lake_uri, target).ok
    server = MlflowClient(target)
    (copy,) = server.search_logged_models([server.get_experiment_by_name(name).experiment_id])
    assert copy.tags.keys() & {"a", *odd} == {"a"}


def test_artifacts_are_copied_once_and_versions_point_to_the_copies(tmp_path: Path, family: Any, lake_uri: str, target: str) -> None:
    import mlflow.artifacts

    client, name, runs = family
    (tmp_path / "weights ü'.bin").write_bytes(os.urandom(5000))
    (tmp_path / "empty").write_bytes(b"")
    client.log_artifact(runs[0], str(tmp_path / "weights ü'.bin"), "model/deep")
    client.log_artifact(runs[0], str(tmp_path / "empty"), "model")
    client.create_registered_model(name)
    client.create_model_version(name, f"runs:/{runs[0]}/model", runs[0])
    options: dict[str, Any] = {"experiments": [name], "models": name, "artifacts": "copy"}
    first = sync(lake_uri, target, **options)
    assert (first.ok, first.files, first.bytes) == (True, 2, 5000), first.failures
    copy = runs_of(target, name)["run 0"].info.run_id
    there = mlflow.artifacts.download_artifacts(f"runs:/{copy}/model", dst_path=str(tmp_path / "down"), tracking_uri=target)
    assert (Path(there) / "deep" / "weights ü'.bin").read_bytes() == (tmp_path / "weights ü'.bin").read_bytes()
    assert MlflowClient(target).get_model_version(name, "1").source == f"runs:/{copy}/model"
    assert sync(lake_uri, target, **options).wrote == 0
    assert sync(lake_uri, target, **options, verify=True).wrote == 0


def test_answers_that_are_lost_after_the_work_was_done_make_nothing_twice(family: Any, lake_uri: str, target: str) -> None:
    _, name, _ = family
    lost: set[str] = set()

    def fault(handler: Any, passed_on: Any) -> bool:
        kind = handler.path.partition("?")[0]
        if handler.command == "POST" and len(handler.proxy.requests) % 2 and "search" not in kind and (kind, handler.body) not in lost:
            lost.add((kind, handler.body))
            passed_on()
            handler.cut()
            return True
        return False

    with Proxy(target) as proxy:
        proxy.fault = fault
        result = sync(lake_uri, proxy.url, experiments=[name], models="none", requests_at_once=1)
    assert result.ok, result.failures
    client = MlflowClient(target)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], run_view_type=3)
    assert sorted(r.info.run_name for r in found) == ["run 0", "run 1", "run 2"]
    assert all(len(client.get_metric_history(r.info.run_id, "acc")) == 3 for r in found)
    assert len(lost) >= 4


_SYNC = "import sys; from spark_tracking.mirror import sync; r = sync(sys.argv[1], sys.argv[2], models='none'); sys.exit(not r.ok)"


def test_two_syncs_at_once_make_each_thing_once(database: str, target: str) -> None:
    experiments = MlflowClient(database)
    experiments.rename_experiment("1", "two at once")
    both = [subprocess.Popen([sys.executable, "-c", _SYNC, database, target]) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    client = MlflowClient(target)
    experiment = client.get_experiment_by_name("two at once")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], run_view_type=3)
    assert sorted(r.info.run_name for r in found) == [f"run {i}" for i in range(6)]
    assert not [m for m in client.search_registered_models() if m.name.startswith("spark-tracking")]


class Killer:
    """A proxy that kills a sync at a request that changes something, by number."""

    def __init__(self, target: str, after: int) -> None:
        self._proxy = Proxy(target)
        self._left = after
        self._proxy.fault = self._fault
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, source: str) -> int:
        code = "import spark_tracking.mirror.target_server as s; s.LOCK_STALE_SECONDS = 1.5; s.LOCK_BEAT_SECONDS = 0.5\n"
        with self._proxy:
            self.process = subprocess.Popen([sys.executable, "-c", code + _SYNC.replace("none", "all"), source, self._proxy.url])
            return self.process.wait(120)

    def _fault(self, handler: Any, passed_on: Any) -> bool:
        self._left -= "search" not in handler.path and handler.command != "GET" and b"beat" not in handler.body
        if self._left >= 0 or self.process is None:
            return False
        self.process.kill()
        handler.cut()
        return True


@pytest.mark.slow
def test_a_killed_sync_is_finished_by_the_next_one(database: str, lake_uri: str, empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "LOCK_STALE_SECONDS", 1.5)
    sync(database, lake_uri)
    assert [Killer(empty, after).run(lake_uri) for after in (3, 9, 14, 22, 34)] == [-9] * 5
    result = sync(lake_uri, empty)
    assert result.ok, result.failures
    assert portable(empty) == portable(lake_uri)


def test_a_database_is_no_target_and_the_message_says_what_to_do(database: str, lake_uri: str) -> None:
    with pytest.raises(InvalidInput, match="mlflow server"):
        sync(lake_uri, database)
