"""What docs/lake.md says of the format is enough for a second implementation: here is one, which knows nothing of the package."""

from __future__ import annotations

import fcntl
import json
import math
import os
import struct
import time
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zlib import crc32

import msgpack
from deltalake import DeltaTable
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from spark_tracking.lake import Lake

MAGIC = b"\xc1rec"
DIGITS = 2**64 - 1


def records(segment: bytes) -> Iterator[tuple[int, int, list[Any], list[Any]]]:
    """(position behind it, stamp, events, blocks) of each record."""
    at = 0
    while at < len(segment):
        magic, length, checksum, stamp = struct.unpack_from("<4sIIq", segment, at)
        payload = segment[at + 20 : at + 20 + length]
        assert magic == MAGIC and checksum == crc32(payload, crc32(struct.pack("<q", stamp)))
        at += 20 + length
        yield at, stamp, *msgpack.unpackb(payload)


def record(stamp: int, events: list[Any], blocks: list[Any]) -> bytes:
    payload = msgpack.packb([events, blocks])
    return struct.pack("<4sIIq", MAGIC, len(payload), crc32(payload, crc32(struct.pack("<q", stamp))), stamp) + payload


def points(packed: bytes) -> list[tuple[str, float, int, int]]:
    _, names, values, times, steps, _, _ = msgpack.unpackb(packed)
    return list(zip(names, array("d", values), array("q", times), array("q", steps)))


def record_id(run: str, metric: str, model: str, time: int, step: int, value: float) -> str:
    mixed = int.from_bytes(blake2b(f"{run}\0{metric}\0{model}".encode(), digest_size=8).digest(), "little")
    for part in (time & DIGITS, step & DIGITS, struct.unpack("<Q", struct.pack("<d", value))[0]):
        mixed ^= part
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & DIGITS
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & DIGITS
        mixed ^= mixed >> 31
    return str(mixed)


def a_run(uri: str) -> str:
    client = MlflowClient(uri)
    run_id: str = client.create_run("0").info.run_id
    metrics = [Metric("loss", value, 1_700_000_000_000 + step, step) for step, value in enumerate([0.5, math.nan, math.inf, -0.0])]
    client.log_batch(run_id, metrics, [Param("lr", "0.1")], [RunTag("team", "vision")])
    return run_id


def test_a_journal_is_read_as_the_page_says(tmp_path: Path) -> None:
    lake = Lake.open(f"delta://{tmp_path}/lake", create=True)
    run_id = a_run(str(lake.uri))
    assert json.loads((tmp_path / "lake" / "lake.json").read_text())["format"] == 1
    (segment,) = (tmp_path / "lake" / "_journal").glob("*.seg")
    *_, (end, stamp, events, blocks) = records(segment.read_bytes())
    assert end == segment.stat().st_size and abs((stamp >> 16) - time.time() * 1000) < 600_000
    assert ["run", run_id, "param", "lr", "0.1"] in events and ["run", run_id, "tag", "team", "vision"] in events
    ((owner, model, packed),) = blocks
    assert (owner, model) == (run_id, None)
    assert repr(points(packed)) == repr([("loss", v, 1_700_000_000_000 + s, s) for s, v in enumerate([0.5, math.nan, math.inf, -0.0])])


def test_tables_are_read_as_the_page_says(tmp_path: Path) -> None:
    lake = Lake.open(f"delta://{tmp_path}/lake", create=True)
    run_id = a_run(str(lake.uri))
    lake.refresh()
    (segment,) = (tmp_path / "lake" / "_journal").glob("*.seg")
    positions = {"events": 0, "run_metrics_history": 0}
    for end, _, events, blocks in records(segment.read_bytes()):
        positions |= ({"events": end} if events else {}) | ({"run_metrics_history": end} if blocks else {})
    logs = {name: DeltaTable(f"{lake.uri.root}/{name}") for name in positions}
    assert {name: table.transaction_version(segment.stem) for name, table in logs.items()} == positions
    runs = DeltaTable(f"{lake.uri.root}/runs_latest")
    assert {name: runs.transaction_version(name) for name in logs} == {name: table.version() for name, table in logs.items()}
    for row in logs["run_metrics_history"].to_pyarrow_table().to_pylist():
        at = round(row["metric_time"].timestamp() * 1000)
        assert row["record_id"] == record_id(run_id, "loss", "", at, row["metric_step"], row["metric_value"])
    (state,) = runs.to_pyarrow_table()["state"].to_pylist()
    writers, fields, metrics, of_model, purge = msgpack.unpackb(state)
    stamp, writer, value = fields["tag"]["team"]
    assert value == "vision" and writers[writer] == segment.stem.rsplit("-", 1)[0] and stamp > 0
    assert metrics == {"loss": [-0.0, math.inf, 3, 1_700_000_000_003, -0.0]} and (of_model, purge) == ([], None)


def test_what_another_implementation_writes_is_a_run_for_everyone(tmp_path: Path) -> None:
    uri = f"delta://{tmp_path}/lake"
    known = Lake.open(uri, create=True)
    stamp = time.time_ns() // 1_000_000 << 16
    attrs = {"experiment_id": "0", "status": "RUNNING", "lifecycle_stage": "active", "created_by": "other", "start_time": "1700000000000"}
    attrs |= {"artifact_uri": "file:///elsewhere", "run_name": "by hand", "created": str(stamp >> 16)}
    values = [array("d", [0.25, 0.75]).tobytes(), array("q", [1_700_000_000_000] * 2).tobytes(), array("q", [0, 1]).tobytes()]
    block = ["f00d", None, msgpack.packb(["0", ["loss", "loss"], *values, None, None])]
    path = tmp_path / "lake" / "_journal" / "0123456789-00000.seg"
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.write(fd, record(stamp, [["run", "f00d", "attr", key, value] for key, value in attrs.items()], [block]))
    os.write(fd, record(stamp + 1, [["run", "f00d", "tag", "team", "vision"]], []))
    os.fsync(fd)
    run = MlflowClient(uri).get_run("f00d")
    assert (run.info.run_name, run.data.metrics, run.data.tags["team"]) == ("by hand", {"loss": 0.75}, "vision")
    known.refresh()
    assert path.exists(), "its owner still holds it"
    os.close(fd)
    known.refresh()
    known.flush()
    assert not path.exists(), "what nobody holds any more goes once it is in the logs"
    assert [point.value for point in MlflowClient(uri).get_metric_history("f00d", "loss")] == [0.25, 0.75]
    assert known.check().problems == []
