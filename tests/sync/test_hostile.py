"""What a hostile or broken source can do: cost its own rows and its own sync, and nothing else."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from deltalake import write_deltalake
from mlflow.tracking import MlflowClient

import spark_tracking as st
from spark_tracking.cli import main
from spark_tracking.errors import InvalidInput, NotFound, PermissionRefused, Unavailable
from spark_tracking.lake import Lake
from spark_tracking.lake.system_tables import NAMES
from spark_tracking.lake.tables import BY_NAME
from spark_tracking.mirror import sync
from spark_tracking.readers import artifacts
from spark_tracking.store.trash import purge_deleted
from tests.sync.conftest import T0

Answer = dict[str, Any]


class Hostile:
    """A server that answers as it is told.

    Attributes:
        answers: by the end of a path, the JSON to answer with, or a function of the query and body, or bytes as they are.
    """

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                path = self.path.partition("?")[0]
                found = next((answer for end, answer in outer.answers.items() if path.endswith(end)), {})
                found = found(self.path, body) if callable(found) else found
                data = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(200)
                if data[:2] == b"\x1f\x8b":
                    self.send_header("Content-Encoding", "gzip")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = handle_any

            def log_message(self, *args: Any) -> None:
                pass

        self.answers: dict[str, Any] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def serve(self, runs: list[Any], **others: Any) -> None:
        """One experiment with these runs, and other listings by the end of their path with `_` for `-` and `__` for `/`."""
        experiment = {"experiment_id": "7", "name": "seven", "lifecycle_stage": "active", "artifact_location": "file:///nowhere"}
        self.answers = {
            "experiments/search": {"experiments": [experiment]},
            "runs/search": lambda path, body: {"runs": _asked(runs, body)},
            "get-history-bulk": {"metrics": []},
            **{name.replace("__", "/").replace("_", "-"): answer for name, answer in others.items()},
        }


def _asked(runs: list[Any], body: Answer) -> list[Any]:
    """The runs of the span that is asked for, as far as they have a time, and all others."""
    bounds = dict(re.findall(r"start_time (>=|<) (\d+)", body.get("filter") or ""))
    low, high = int(bounds.get(">=", 0)), int(bounds.get("<", 1 << 62))
    times = [one["info"].get("start_time") if isinstance(one, dict) and isinstance(one["info"], dict) else None for one in runs]
    found = [one for one, time in zip(runs, times) if not isinstance(time, int) or low <= time < high]
    return found[::-1] if "DESC" in body["order_by"][0] else found


def run(id: Any, start: Any = T0, uri: str | None = None, stage: str = "active", **data: Any) -> Answer:
    info = {"run_id": id, "experiment_id": "7", "status": "FINISHED", "start_time": start, "lifecycle_stage": stage, "artifact_uri": uri}
    return {"info": info, "data": data}


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    server = Hostile()
    yield server
    server.server.shutdown()
    server.server.server_close()


MALFORMED: dict[str, Any] = {
    "a lone surrogate": run("bad", tags=[{"key": "t", "value": "\ud800"}]),
    "a start that is no time": run("bad", "abc"),
    "a start after the year 9999": run("bad", 1 << 60),
    "a number as key": run("bad", params=[{"key": 5, "value": "x"}]),
    "a number as value": run("bad", params=[{"key": "p", "value": 5}]),
    "a null id": run(None),
    "a list for an object": {"info": [], "data": {}},
    "an object for a list": run("bad", params={"a": 1}),
    "a metric without value": run("bad", metrics=[{"key": "m"}]),
    "no object at all": 5,
    "null": None,
    "an id that climbs": run("../../victim"),
    "an encoded id": run("%2e%2e"),
    "an id with a line end": run("a\nb"),
    "a long id": run("x" * 251),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_run_costs_that_run_and_is_told(kind: str, hostile: Hostile, lake_uri: str) -> None:
    hostile.serve([run("first"), MALFORMED[kind], run("last", T0 + 1, params=[{"key": "p", "value": "v"}])])
    result = sync(hostile.url, lake_uri, models="none")
    assert {r.info.run_id for r in MlflowClient(lake_uri).search_runs(["7"])} == {"first", "last"}
    assert [failure.kind for failure in result.failures] == ["run"] and not result.ok
    json.dumps(result.as_dict())
    assert result.failures[0].reason.isprintable() and result.failures[0].reason.isascii()
    rows = st.read("runs_latest", tracking_uri=hostile.url).read_all()["run_id"].to_pylist()
    assert {"first", "last"} <= set(rows)


BAD_MODEL = {"name": "bad", "creation_timestamp": "abc"}
BAD_EXPERIMENT = {"experiment_id": None, "name": "x"}


def test_malformed_experiments_and_models_cost_themselves_and_nothing_is_removed_for_them(hostile: Hostile, lake_uri: str) -> None:
    good = [{"name": name, "creation_timestamp": T0} for name in ("bad", "good")]
    hostile.serve([], registered_models__search={"registered_models": good})
    assert sync(hostile.url, lake_uri).ok
    hostile.serve([], registered_models__search={"registered_models": [BAD_MODEL, good[1]]})
    hostile.answers["experiments/search"]["experiments"].append(BAD_EXPERIMENT)
    result = sync(hostile.url, lake_uri)
    assert sorted(failure.kind for failure in result.failures) == ["experiment", "registered_model"]
    assert {m.name for m in MlflowClient(lake_uri, lake_uri).search_registered_models()} == {"bad", "good"}


LISTINGS = ["experiments__search", "registered_models__search", "model_versions__search", "logged_models__search", "runs__search"]


@pytest.mark.parametrize("listing", LISTINGS)
@pytest.mark.parametrize("how", ["the same token", "ever new tokens", "two in turn"])
def test_a_listing_without_end_ends_with_a_reason(
    how: str, listing: str, hostile: Hostile, lake_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_TRACKING_MAX_PAGES", "50")
    hostile.serve([run("one")])
    path, count = listing.replace("__", "/").replace("_", "-"), iter(range(10**9))
    page = hostile.answers.get(path, {})

    def endless(query: str, body: Answer) -> Answer:
        number = next(count)
        token = {"the same token": "t", "ever new tokens": f"t{number}", "two in turn": f"t{number % 2}"}[how]
        return {**(page(query, body) if callable(page) else page), "next_page_token": token}

    hostile.answers[path] = endless
    with pytest.raises(Unavailable, match=r"came \d times|does not end"):
        sync(hostile.url, lake_uri)


def test_a_page_that_is_too_large_is_refused_at_a_stated_size(hostile: Hostile, lake_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_TRACKING_MAX_PAGE_BYTES", "1000000")
    hostile.serve([])
    hostile.answers["runs/search"] = gzip.compress(b'{"runs": [' + b" " * 50_000_000 + b"]}")
    with pytest.raises(Unavailable, match=r"more than 1,000,000 bytes.*SPARK_TRACKING_MAX_PAGE_BYTES"):
        sync(hostile.url, lake_uri)


@pytest.mark.parametrize("answer", [b"[]", b"5", b'{"experiments": {"a": 1}}'])
def test_an_answer_of_another_kind_is_a_sentence(answer: bytes, hostile: Hostile, lake_uri: str) -> None:
    hostile.answers = {"experiments/search": answer}
    done = CliRunner().invoke(main, ["sync", hostile.url, lake_uri])
    assert done.exit_code == 1 and done.output.startswith("Error: ") and isinstance(done.exception, SystemExit)


def test_a_server_that_suddenly_has_nothing_stops_the_sync(hostile: Hostile, lake_uri: str) -> None:
    models = [{"name": f"m{i}", "creation_timestamp": T0, "aliases": [{"alias": "a", "version": "1"}]} for i in range(4)]
    versions = [{"name": f"m{i}", "version": "1", "creation_timestamp": T0} for i in range(4)]
    runs = [run(f"r{i}", T0 + i) for i in range(4)]

    def serve(runs: list[Any], models: list[Any], versions: list[Any]) -> None:
        listed = {"registered_models": models}
        hostile.serve(runs, registered_models__search=listed, model_versions__search={"model_versions": versions})

    def names() -> set[str]:
        return {m.name for m in MlflowClient(lake_uri, lake_uri).search_registered_models()}

    serve(runs, models, versions)
    assert sync(hostile.url, lake_uri).ok
    hostile.answers = {}
    for left in ({}, (runs[:1], models, versions), (runs, models[:1], versions), (runs, models, [])):
        if left:
            serve(*left)  # type: ignore[misc]
        with pytest.raises(Unavailable, match=r"lists .* where the last sync saw 4|lists 0 experiments where the last sync saw 1"):
            sync(hostile.url, lake_uri)
        assert names() == {f"m{i}" for i in range(4)}
    serve(runs[:2], models[:2], versions[:2])
    assert sync(hostile.url, lake_uri).ok and names() == {"m0", "m1"}  # half is not too much
    serve(runs[:2], [], [])
    assert CliRunner().invoke(main, ["sync", hostile.url, lake_uri]).exit_code == 1
    assert CliRunner().invoke(main, ["sync", hostile.url, lake_uri, "--force"]).exit_code == 0
    assert names() == set()


def test_a_run_trashed_at_the_source_stays_for_the_retention_and_comes_back(hostile: Hostile, lake_uri: str) -> None:
    hostile.serve([run("r1", T0, stage="deleted")])
    assert sync(hostile.url, lake_uri, models="none").ok
    assert sync(hostile.url, lake_uri, models="none").wrote == 0
    assert purge_deleted(lake_uri)["run"] == []
    client = MlflowClient(lake_uri)
    assert client.get_run("r1").info.lifecycle_stage == "deleted"
    assert st.read("runs_latest", tracking_uri=lake_uri, view_type="all").read_all()["delete_time"][0].as_py() is not None
    hostile.serve([run("r1", T0)])
    assert sync(hostile.url, lake_uri, models="none").ok
    assert client.get_run("r1").info.lifecycle_stage == "active"
    assert Lake.open(lake_uri).get("run", "r1").attr("deleted") is None  # type: ignore[union-attr]


def test_what_a_source_claims_as_its_files_is_never_deleted(hostile: Hostile, tmp_path: Path) -> None:
    lake, precious = tmp_path / "lake", tmp_path / "victimroot" / "precious"
    precious.mkdir(parents=True)
    (precious / "thesis").write_text("years")
    climbing = f"file://{lake}/artifacts/7/%2e%2e/%2e%2e/%2e%2e/victimroot/precious"
    hostile.serve([run("victimroot", T0, climbing, "deleted"), run("other", T0 + 1, precious.as_uri(), "deleted")])
    assert sync(hostile.url, f"delta://{lake}", models="none").ok
    assert sorted(purge_deleted(f"delta://{lake}", 0)["run"]) == ["other", "victimroot"]
    assert (precious / "thesis").read_text() == "years"


class _Repository:
    def __init__(self, answer: Callable[[str | None], list[tuple[str, bool]]]) -> None:
        self._answer = answer

    def list_artifacts(self, path: str | None) -> list[Any]:
        from mlflow.entities import FileInfo

        return [FileInfo(name, folder, 1) for name, folder in self._answer(path)]


@pytest.mark.parametrize("listed", ["self", "parent", "../x", "/etc/passwd", "a/../../x", "%2e%2e/x", "deeper"])
def test_artifacts_that_list_themselves_or_lie_elsewhere_are_refused(listed: str) -> None:
    def answer(path: str | None) -> list[tuple[str, bool]]:
        if listed == "self":
            return [(path or "a", True)]
        if listed == "parent":
            return [("a", True)]
        return [(f"{path}/sub" if path else "sub", True)] if listed == "deeper" else [(listed, False)]

    with pytest.raises(Unavailable):
        list(artifacts.walk(_Repository(answer)))


@pytest.fixture
def system_tables(tmp_path: Path) -> Path:
    """Delta tables in the layout of `system.mlflow`, and a Parquet file outside of them."""
    root = tmp_path / "system"
    for name in NAMES:
        schema = pa.schema([field for field in BY_NAME[name].schema if field.name not in ("state", "lifecycle_stage", "metrics", "hlc")])
        write_deltalake(str(root / name), pa.table([pa.array(["1"] if f.type == pa.string() else [None], f.type) for f in schema], schema))
    return root


@pytest.mark.parametrize("how", ["absolute", "climbing", "encoded", "twice encoded", "scheme", "link"])
def test_delta_tables_of_others_read_nothing_outside_their_folder(how: str, system_tables: Path, lake_uri: str) -> None:
    assert st.read("runs_latest", tracking_uri=str(system_tables), view_type="all").read_all().num_rows == 1
    table = system_tables / "runs_latest"
    [file], [log] = table.glob("*.parquet"), (table / "_delta_log").glob("*.json")
    secret = system_tables.parent / "secret.parquet"
    shutil.move(file, secret)
    paths = {
        "absolute": str(secret),
        "climbing": "../../secret.parquet",
        "encoded": "%2e%2e/%2e%2e/secret.parquet",
        "twice encoded": "%252e%252e/%252e%252e/secret.parquet",
        "scheme": secret.as_uri(),
        "link": file.name,
    }
    if how == "link":
        file.symlink_to(secret)
    log.write_text(log.read_text().replace(file.name, paths[how]))
    with pytest.raises(PermissionRefused, match="outside of its folder"):
        sync(str(system_tables), lake_uri)


def test_messages_say_what_to_do(tmp_path: Path, lake_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("src.db").write_bytes(b"SQLite format 3\0")
    with pytest.raises(InvalidInput, match=r"sqlite:///src\.db"):
        sync("src.db", lake_uri)
    with pytest.raises(InvalidInput, match="no target"):
        sync(lake_uri, "src.db")
    with pytest.raises(NotFound, match=f"no database file '{tmp_path}/none.db'"):
        sync("sqlite:///none.db", lake_uri)
    with pytest.raises(InvalidInput, match="No tracking server was named"):
        st.delete_run("x")
    with pytest.raises(InvalidInput, match=r"no option 'experiment_id'. Did you mean experiment_ids=\?"):
        st.read("runs", experiment_id="1")
