"""A lake on an object store keeps what a lake in a folder keeps: what was acknowledged is there, once, for every process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from spark_tracking.delta import object_store, storage
from spark_tracking.errors import InvalidSetting, LakeError, LakeReadOnly
from spark_tracking.lake import Event, Lake, process_view
from spark_tracking.lake.tables import METRICS_LOG
from spark_tracking.masking import masked
from spark_tracking.store.trash import purge_deleted
from tests.lake.making import points, run_created, see_late_what_came_while_it_only_wrote, tag, what
from tests.lake.object_store.emulators import ACCOUNT_KEY, Emulator, objects, start_s3

Another = Callable[[], Lake]
on_azure_slowly = pytest.mark.parametrize("store", ["s3", pytest.param("azure", marks=pytest.mark.slow)], indirect=True)
PEER = str(Path(__file__).with_name("peer.py"))


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is flushed in the background: what is tested happens when the test says."""
    monkeypatch.setenv("SPARK_TRACKING_FLUSH_SECONDS", "3600")


PROCESSES: list[subprocess.Popen[str]] = []


def peer(uri: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A process of its own on the lake; see peer.py. It does not outlive the test."""
    command = [sys.executable, PEER, uri, *arguments]
    PROCESSES.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}))
    return PROCESSES[-1]


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    yield
    while PROCESSES:
        process = PROCESSES.pop()
        process.kill()
        process.wait()


def output(process: subprocess.Popen[str], code: int = 0) -> list[str]:
    """What the process printed, once it has ended as it should."""
    text, _ = process.communicate(timeout=120)
    assert process.returncode == code, text
    return text.split()


def steps(lake: Lake, run: str) -> list[int]:
    """The steps that readers see."""
    return lake.metric_history(run)["metric_step"].to_pylist()  # type: ignore[no-any-return]


def raw_steps(lake: Lake, run: str) -> list[int]:
    """The steps in the metrics log, as a stranger reads it."""
    from deltalake import DeltaTable

    table = DeltaTable(f"{lake.uri.root}/{METRICS_LOG.name}").to_pyarrow_table(filters=[("run_id", "=", run)])
    return sorted(table["metric_step"].to_pylist())


def journal(lake: Lake) -> list[str]:
    return [path for path in objects(lake.uri.root) if path.startswith("_journal/")]


@on_azure_slowly
def test_processes_that_make_the_same_lake_at_once_share_it(cloud_uri: str) -> None:
    makers = [peer(cloud_uri, "log", f"r{number}", "1") for number in range(4)]
    assert [output(maker) for maker in makers] == [["0"]] * 4
    lake = Lake.open(cloud_uri)
    assert sorted(run.id for run in lake.search("run")) == ["r0", "r1", "r2", "r3"]
    assert lake.check().problems == []
    lake.close()
    Lake._open.pop(lake.uri.root, None)


# -- acknowledged means seen ----------------------------------------------------------------------------------------


def test_what_one_process_acknowledged_every_other_sees_at_once(cloud_lake: Lake, another_on: Another) -> None:
    other = another_on()
    for number in range(5):
        cloud_lake.write([*run_created("r1"), tag("r1", "n", str(number))], [points("r1", "loss", 0.5, step=number)])
        assert other.get("run", "r1").items("tag")["n"] == str(number)
    assert steps(other, "r1") == [0, 1, 2, 3, 4]


def test_a_flush_changes_nothing_that_readers_see(cloud_lake: Lake, another_on: Another) -> None:
    other = another_on()
    cloud_lake.write(run_created("r1", k="v"), [points("r1", "loss", 1.0, 2.0)])
    before = what(other.get("run", "r1"))
    cloud_lake.settle()
    assert what(other.get("run", "r1")) == before == what(another_on().get("run", "r1"))
    assert other.check().problems == []


@on_azure_slowly
def test_a_process_that_ends_settles_what_others_wrote_in_many_objects(cloud_lake: Lake) -> None:
    """At its exit, when Python starts no more threads."""
    ending = peer(str(cloud_lake.uri), "linger", "r2", "2")
    assert ending.stdout is not None and ending.stdout.readline() == "0\n"
    for step in range(4):
        cloud_lake.write(run_created("r1"), [points("r1", "loss", 0.5, step=step)])
    output(ending)
    assert (raw_steps(cloud_lake, "r1"), raw_steps(cloud_lake, "r2")) == ([0, 1, 2, 3], [0])


def test_a_reader_that_slept_through_flush_and_removal_sees_all(cloud_lake: Lake, another_on: Another) -> None:
    """It finds the journal's objects gone, some of them ones that it knew to follow, and reads them from the logs."""
    cloud_lake.write(run_created("r1"), [points("r1", "loss", 0.0)])
    sleeper = another_on()
    assert steps(sleeper, "r1") == [0]
    for number in range(1, 4):
        cloud_lake.write([tag("r1", "n", str(number))], [points("r1", "loss", 0.0, step=number)])
        cloud_lake.flush()
    cloud_lake.write([tag("r1", "last", "one")])
    run = sleeper.get("run", "r1")
    assert (run.items("tag")["n"], run.items("tag")["last"], run.metrics["loss"].latest.step) == ("3", "one", 3)
    assert steps(sleeper, "r1") == [0, 1, 2, 3]


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_to_write_nobody_fetches_the_points_of_others(cloud_lake: Lake, another_on: Another, store: Emulator) -> None:
    other = another_on()
    cloud_lake.write(run_created("r1"))
    for step in range(4):
        cloud_lake.write((), [points("r1", "loss", 0.5, step=step)])
    assert other.get("run", "r1", points=False).attr("status") == "RUNNING"
    store.requests()
    for step in range(4, 8):
        other.write((), [points("r1", "loss", 0.5, step=step)])
    assert [r for r in store.requests() if r.startswith("GET") and "/_journal/" in r] == []
    assert steps(other, "r1") == steps(cloud_lake, "r1") == list(range(8))


@on_azure_slowly
def test_who_only_wrote_for_long_reads_what_was_flushed_and_refreshed_meanwhile(
    cloud_lake: Lake, another_on: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal's objects are gone and the derived tables have moved on; what it kept in memory is old."""
    monkeypatch.setattr(process_view, "WRITERS_PATIENCE", -1.0)
    monkeypatch.setattr(object_store.ObjectStore, "patience", 0.0)
    see_late_what_came_while_it_only_wrote(cloud_lake, another_on())


def test_a_slow_clock_does_not_lose_its_writes(cloud_lake: Lake, another_on: Another, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud_lake.write(run_created("r1", k="first"))
    slow = another_on()
    real = time.time_ns
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: real() - 3600 * 10**9)
        slow.write([tag("r1", "k", "second")])
    assert cloud_lake.get("run", "r1").items("tag")["k"] == "second"


# -- the journal ------------------------------------------------------------------------------------------------------


def test_calls_that_meet_go_into_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = start_s3(delay_ms=10)
    try:
        for name, value in emulator.environment.items():
            monkeypatch.setenv(name, value)
        uri = f"delta+{emulator.base}/meeting"
        lake = Lake.open(uri, create=True)
        emulator.requests()
        assert output(peer(uri, "threads", "r1", "16", "6")) == ["0", "done"]
        puts = [r for r in emulator.requests() if r.startswith("PUT") and "/_journal/" in r]
        assert 6 <= len(puts) < 16 * 6 / 2
        tags = lake.get("run", "r1").fields["tag"]
        assert len([key for key in tags if "." in key]) == 16 * 6
        lake.close()
        Lake._open.pop(lake.uri.root)
    finally:
        emulator.stop()


def test_the_journal_is_empty_once_all_writers_have_gone(cloud_lake: Lake, cloud_uri: str) -> None:
    output(peer(cloud_uri, "log", "r1", "3"))
    assert journal(cloud_lake) == []
    assert raw_steps(cloud_lake, "r1") == [0, 1, 2]


def test_of_a_writer_that_lives_the_newest_object_stays(cloud_lake: Lake) -> None:
    for number in range(4):
        cloud_lake.write(run_created("r1"), [points("r1", "loss", 0.0, step=number)])
    cloud_lake.flush()
    assert len(journal(cloud_lake)) == 1
    cloud_lake.flush()
    assert raw_steps(cloud_lake, "r1") == [0, 1, 2, 3]


def test_a_dead_writers_segment_goes_once_it_has_been_idle(cloud_lake: Lake, cloud_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output(peer(cloud_uri, "log-and-die", "r1", "3"), code=-9)
    cloud_lake.flush()
    assert len(journal(cloud_lake)) == 1
    monkeypatch.setattr("spark_tracking.lake.object_journal.IDLE_SECONDS", -1.0)
    cloud_lake.flush()
    assert journal(cloud_lake) == []


def test_a_put_whose_answer_was_lost_counts_once(cloud_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client asks again, and the store says that the object is there."""
    really = object_store.ObjectStore.create

    def answered_twice(self: object_store.ObjectStore, path: str, data: bytes) -> bool:
        return really(self, path, data) and really(self, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(object_store.ObjectStore, "create", answered_twice)
        cloud_lake.write(run_created("r1"), [points("r1", "loss", 1.0)])
    cloud_lake.flush()
    assert raw_steps(cloud_lake, "r1") == [0]


def test_a_call_that_failed_may_have_landed_and_the_next_one_is_whole(cloud_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud_lake.write(run_created("r1"), [points("r1", "loss", 1.0)])
    really = object_store.ObjectStore.create

    def lost(self: object_store.ObjectStore, path: str, data: bytes) -> bool:
        really(self, path, data)
        raise LakeError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(object_store.ObjectStore, "create", lost)
        with pytest.raises(LakeError, match="no answer"):
            cloud_lake.write((), [points("r1", "loss", 1.0, step=1)])
    cloud_lake.write((), [points("r1", "loss", 1.0, step=2)])
    assert steps(cloud_lake, "r1") == [0, 1, 2]
    cloud_lake.flush()
    assert raw_steps(cloud_lake, "r1") == [0, 1, 2]


# -- crashes and races -------------------------------------------------------------------------------------------------


@on_azure_slowly
def test_kill_9_loses_no_acknowledged_write(cloud_lake: Lake, cloud_uri: str) -> None:
    writers = [peer(cloud_uri, "log", f"r{n}", "100000", SPARK_TRACKING_FLUSH_SECONDS="0.3") for n in range(3)]
    heard: list[list[int]] = [[] for _ in writers]

    def listen(number: int) -> None:
        for line in writers[number].stdout or ():
            heard[number].append(int(line))

    listeners = [threading.Thread(target=listen, args=(number,)) for number in range(3)]
    for listener in listeners:
        listener.start()
    for number, writer in enumerate(writers):
        while len(heard[number]) < 10 + 7 * number:
            assert writer.poll() is None
            time.sleep(0.01)
        writer.kill()
    for listener in listeners:
        listener.join()
    for number, acknowledged in enumerate(heard):
        seen = steps(cloud_lake, f"r{number}")
        assert seen == list(range(len(seen))) and len(acknowledged) <= len(seen) <= len(acknowledged) + 1
    cloud_lake.settle()
    for number in range(3):
        assert raw_steps(cloud_lake, f"r{number}") == steps(cloud_lake, f"r{number}")
    assert cloud_lake.check().problems == []


@on_azure_slowly
def test_flushers_that_do_not_know_of_each_other_store_each_point_once(cloud_lake: Lake, cloud_uri: str) -> None:
    flushers = [peer(cloud_uri, "flush", "8") for _ in range(2)]
    writer = peer(cloud_uri, "log", "r1", "60")
    assert output(writer)[-1] == "59"
    assert [output(flusher) for flusher in flushers] == [["done"], ["done"]]
    cloud_lake.flush()
    assert raw_steps(cloud_lake, "r1") == list(range(60))
    assert cloud_lake.check().problems == []


@on_azure_slowly
def test_a_name_is_taken_once_however_many_processes_want_it(cloud_lake: Lake, cloud_uri: str) -> None:
    names = [f"name{number}" for number in range(4)]
    takers = [peer(cloud_uri, "take", *names) for _ in range(3)]
    made = [line for taker in takers for line in output(taker)]
    assert sorted(line.split("=")[0] for line in made) == names
    assert len({line.split("=")[1] for line in made}) == len(names)


def test_the_lease_of_a_killed_flusher_is_taken_over(cloud_lake: Lake, cloud_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "LEASE_SECONDS", 0.5)
    assert output(peer(cloud_uri, "lead-and-die"), code=-9) == ["leads"]
    files = storage.of(cloud_lake.uri.root)
    with files.leadership(wait=False) as leader:
        assert not leader
    cloud_lake.write(run_created("r1"))
    cloud_lake.settle()
    assert object_store.LEASE not in objects(cloud_lake.uri.root)


def test_one_flusher_at_a_time_has_the_lease(cloud_lake: Lake) -> None:
    first, second = object_store.ObjectStore(cloud_lake.uri.root), object_store.ObjectStore(cloud_lake.uri.root)
    with first.leadership(wait=False) as leads, second.leadership(wait=False) as too:
        assert (leads, too) == (True, False)
    with second.leadership(wait=False) as leads:
        assert leads


def test_a_forked_child_writes_and_reads_through_a_helper(cloud_lake: Lake, cloud_uri: str) -> None:
    assert output(peer(cloud_uri, "fork", "r1")) == ["0", "0", "0"]
    assert cloud_lake.get("run", "r1").items("tag")["from"] == "child"


@on_azure_slowly
def test_tables_are_compacted_vacuumed_and_rebuilt_beside_a_writer(cloud_lake: Lake, cloud_uri: str) -> None:
    writer = peer(cloud_uri, "log", "r1", "40", SPARK_TRACKING_FLUSH_SECONDS="0.2")
    while writer.poll() is None:
        cloud_lake.compact()
        cloud_lake.vacuum()
        cloud_lake.rebuild()
    assert output(writer)[-1] == "39"
    assert steps(cloud_lake, "r1") == list(range(40))
    assert cloud_lake.check().problems == []


# -- purging -----------------------------------------------------------------------------------------------------------


@on_azure_slowly
@pytest.mark.parametrize(
    "forged",
    ["", "{root}/artifacts/0/{id}/../kept/artifacts", "{root}/artifacts/0/%2e%2e/0/kept/artifacts", "{root}/artifacts/0", "{root}"],
)
def test_a_purge_deletes_what_lies_in_the_runs_own_folder_and_nothing_else(cloud_lake: Lake, forged: str) -> None:
    store, root = storage.of(cloud_lake.uri.root), cloud_lake.uri.root
    client = MlflowClient(str(cloud_lake.uri))
    id = client.create_run("0").info.run_id
    others = [f"artifacts/0/{name}/artifacts/model.bin" for name in ("kept", f"{id}2", f"{id}/beside")]
    own = [f"artifacts/0/{id}/artifacts/{name}" for name in ("model.bin", "a/b.txt", "a%2Fb ü#?.txt")]
    for path in (*others, *own):
        store.create(path, b"model")
    client.delete_run(id)
    if forged:
        cloud_lake.write([Event("run", id, "attr", "artifact_uri", forged.format(root=root, id=id))])
    assert purge_deleted(str(cloud_lake.uri), older_than_days=0)["run"] == [id]
    assert Lake.open(str(cloud_lake.uri)).get("run", id) is None
    left = {path for path in objects(root) if path.startswith("artifacts/")}
    assert left == set(others) | (set(own) if forged else set())
    assert cloud_lake.check().problems == []


# -- what can be wrong -------------------------------------------------------------------------------------------------


def test_a_bucket_that_is_not_there_is_named(store: Emulator) -> None:
    uri = "delta+" + store.base.replace("lakes", "nowhere") + "/lake"
    with pytest.raises(LakeError, match="nowhere"):
        Lake.open(uri, create=True)


def test_a_prefix_without_a_lake_says_how_to_make_one(cloud_uri: str) -> None:
    with pytest.raises(LakeError, match="lake init"):
        Lake.open(cloud_uri)


def test_a_prefix_that_holds_something_else_is_refused(cloud_uri: str) -> None:
    object_store.ObjectStore(cloud_uri.removeprefix("delta+")).create("data/thesis.csv", b"1")
    with pytest.raises(LakeError, match="data"):
        Lake.open(cloud_uri, create=True)


def test_a_refused_key_is_an_error_that_does_not_show_it(azure: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ACCOUNT_KEY.replace("Eby8", "AAAA")
    for name, value in {**azure.environment, "AZURE_STORAGE_ACCOUNT_KEY": wrong}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LakeReadOnly, match="credentials") as caught:
        Lake.open(f"delta+{azure.base}/refused", create=True)
    assert wrong not in str(caught.value)


def test_a_signature_in_a_url_is_cut_from_messages() -> None:
    text = "Error performing PUT https://a.blob.core.windows.net/c/lake.json?sv=2024&sig=SECRET%3D in 4 ms"
    assert masked(text) == "Error performing PUT https://a.blob.core.windows.net/c/lake.json?*** in 4 ms"


def test_without_obstore_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(InvalidSetting, match=r"spark-tracking\[abfss\]"):
        object_store.ObjectStore("abfss://c@account.dfs.core.windows.net/lake")


def test_a_lake_in_a_folder_needs_no_obstore(lake_uri: str) -> None:
    code = f"import sys; from spark_tracking.lake import Lake; Lake.open({lake_uri!r}, create=True); assert 'obstore' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
