"""A lake in a forked child (a DataLoader's or joblib's worker), where delta-rs and Arrow cannot be used any more.

Their threads did not survive the fork, and the first call would hang or panic. The child still appends to the journal, in a
segment of its own; everything else it asks of a helper process that is started with the first question and ends with it.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

import msgpack
import pyarrow as pa

from spark_tracking.errors import LakeError, SparkTrackingError
from spark_tracking.kinds.state import Entity, Event, MetricBlock
from spark_tracking.lake.lake import COMMIT_ATTEMPTS, Lake
from spark_tracking.lake.record import PackedBlock, encode, last_of_each, pack_block

_SIZE = struct.Struct("<I")


class ForkedLake(Lake):
    """What a `Lake` becomes in a forked child: the same calls, answered by a helper process."""

    _helper: Helper | None

    def reborn(self) -> None:
        """Leave everything that belongs to the parent."""
        self._lock = threading.RLock()
        self._journal.forked()
        self._background = None
        self._helper = None

    def _ask(self, call: str, *arguments: Any) -> Any:
        with self._lock:
            if self._helper is None:
                self._helper = Helper(self.uri.root)
            return self._helper.ask(call, *arguments)

    def get(self, kind: str, id: str, points: bool = True) -> Entity | None:
        return self.get_many(kind, [id]).get(id)

    def get_many(self, kind: str, ids: Collection[str]) -> dict[str, Entity]:
        packed = self._ask("get_many", kind, list(ids))
        return {id: Entity.unpack(kind, id, state) for id, state in packed.items()}

    def find(self, kind: str, column: str, value: str) -> list[Entity]:
        return [Entity.unpack(kind, id, state) for id, state in self._ask("find", kind, column, value)]

    def search(
        self,
        kind: str,
        where: str | None = None,
        order_by: Sequence[str] = (),
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Entity]:
        packed = self._ask("search", kind, where, list(order_by), limit, offset)
        return [Entity.unpack(kind, id, state) for id, state in packed]

    def count(self, kind: str, where: str | None = None) -> int:
        return int(self._ask("count", kind, where))

    def metric_history(self, run_ids: str | Collection[str], name: str | None = None) -> pa.Table:
        ids = run_ids if isinstance(run_ids, str) else list(run_ids)
        return pa.ipc.open_stream(self._ask("metric_history", ids, name)).read_all()

    def write(self, events: Sequence[Event] = (), metrics: Sequence[MetricBlock] = (), polled: bool = False) -> None:
        blocks = [PackedBlock(b.run_id, b.model_id, pack_block(b)) for b in metrics]
        if not self._journal.survives_fork:
            self._ask("write", [tuple(event) for event in events], [(b.run_id, b.model_id, b.packed) for b in blocks])
            return
        self._clock.observe(self._ask("clock"))
        with self._lock:
            self._journal.own.append(encode(self._clock.tick(), last_of_each(events), blocks))

    def commit(self, decide: Callable[[], Sequence[Event]]) -> None:
        for _ in range(COMMIT_ATTEMPTS):
            number = self._ask("names")
            events = decide()
            if not events or self._ask("commit", number, [tuple(event) for event in events]):
                return
            time.sleep(0.005)
        raise LakeError(f"Other processes changed names {COMMIT_ATTEMPTS} times in a row; try again later.")

    def purge(self, kind: str, ids: Collection[str]) -> None:
        self._ask("purge", kind, list(ids))

    def settle(self, wait: bool = True, of: tuple[str, str] | None = None) -> None:
        if wait:
            self._ask("settle")

    def close(self) -> None:
        self._journal.own.close()

    def _unavailable(self, *_: Any, **__: Any) -> NoReturn:
        raise LakeError(
            "This cannot be done in a forked process, where Delta's threads are gone. Do it in the parent, or start "
            "workers with the 'spawn' method (multiprocessing.get_context('spawn'))."
        )

    scan = flush = refresh = rebuild = compact = vacuum = drop_purged = check = info = _unavailable


class Helper:
    """The child's end of the pipe to a helper process. Frames: length (u32), msgpack."""

    def __init__(self, root: str) -> None:
        command = [sys.executable, "-m", "spark_tracking.lake.forked", root]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, call: str, *arguments: Any) -> Any:
        """The answer to one question.

        Raises:
            LakeError: the helper failed, or is gone.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        _send(self._process.stdin, [call, arguments])
        answer = _receive(self._process.stdout)
        if answer is None:
            raise LakeError("The helper process of this forked process ended unexpectedly; see its error output.")
        if "error" in answer:
            raise LakeError(answer["error"])
        return answer["value"]


def _serve(root: str) -> None:
    lake = Lake.open(root)
    while (question := _receive(sys.stdin.buffer)) is not None:
        call, arguments = question
        try:
            answer = {"value": _CALLS[call](lake, *arguments)}
        except SparkTrackingError as error:
            answer = {"error": str(error.message)}
        _send(sys.stdout.buffer, answer)


def _history(lake: Lake, run_ids: str | list[str], name: str | None) -> bytes:
    table, sink = lake.metric_history(run_ids, name), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


_CALLS: dict[str, Callable[..., Any]] = {
    "get_many": lambda lake, kind, ids: {id: e.pack() for id, e in lake.get_many(kind, ids).items()},
    "search": lambda lake, *arguments: [(e.id, e.pack()) for e in lake.search(*arguments)],
    "find": lambda lake, *arguments: [(e.id, e.pack()) for e in lake.find(*arguments)],
    "count": lambda lake, kind, where: lake.count(kind, where),
    "metric_history": _history,
    "clock": lambda lake: lake.clock(),
    "names": lambda lake: lake.names_number(),
    "commit": lambda lake, number, events: lake.try_commit(number, [Event(*event) for event in events]),
    "write": lambda lake, events, blocks: lake.write([Event(*e) for e in events], [PackedBlock(*b).unpack() for b in blocks]),
    "purge": lambda lake, kind, ids: lake.purge(kind, ids),
    "settle": lambda lake: lake.settle(),
}


def _send(pipe: Any, message: Any) -> None:
    data = msgpack.packb(message)
    pipe.write(_SIZE.pack(len(data)) + data)
    pipe.flush()


def _receive(pipe: Any) -> Any:
    header = pipe.read(_SIZE.size)
    return msgpack.unpackb(pipe.read(_SIZE.unpack(header)[0]), strict_map_key=False) if header else None


if __name__ == "__main__":
    _serve(sys.argv[1])
