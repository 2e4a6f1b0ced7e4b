"""A lake in a forked child (a DataLoader's or joblib's worker), where delta-rs and Arrow cannot be used any more.

Their threads did not survive the fork, and the first call would hang or panic. The child still appends to the journal, in a
segment of its own; everything else it asks of a helper process that is started with the first question and ends with it.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from spark_tracking.delta.faults import explained, is_foreign
from spark_tracking.errors import LakeError
from spark_tracking.kinds.state import Event, MetricBlock
from spark_tracking.lake.journal_record import Clock, PackedBlock, encode, last_of_each, pack_block
from spark_tracking.lake.journals import AnyJournal
from spark_tracking.lake.names import insist

P = ParamSpec("P")
T = TypeVar("T")
ASKED = frozenset(
    {"get", "get_many", "find", "search", "count", "metric_history", "clock", "names_number", "try_commit", "purge", "settle"}
)
"""Calls of a lake that the helper answers as they are."""


class Forked:
    """Answers the calls of a `Lake` in a forked child, by a helper process (`lake.helper`); leaves everything that is the parent's."""

    def __init__(self, root: str, journal: AnyJournal, clock: Clock) -> None:
        self._root, self._journal, self._clock = root, journal, clock
        self._lock = threading.RLock()
        self._helper: subprocess.Popen[bytes] | None = None
        journal.forked()

    def _ask(self, call: str, *arguments: Any, **named: Any) -> Any:
        """The answer to one question. Raises LakeError: the helper failed, or is gone."""
        with self._lock:
            if self._helper is None:
                command = [sys.executable, "-m", "spark_tracking.lake.helper", self._root]
                self._helper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert self._helper.stdin is not None and self._helper.stdout is not None
            pickle.dump((call, arguments, named), self._helper.stdin)
            self._helper.stdin.flush()
            try:
                answer, error = pickle.load(self._helper.stdout)  # noqa: S301 - a pipe between the two
            except EOFError:
                raise LakeError("The helper process of this forked process ended unexpectedly; see its error output.") from None
        if error is not None:
            raise LakeError(error)
        return answer

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name in ASKED:
            return partial(self._ask, name)
        raise LakeError(
            "This cannot be done in a forked process, where Delta's threads are gone. Do it in the parent, or start "
            "workers with the 'spawn' method (multiprocessing.get_context('spawn'))."
        )

    def write(self, events: Sequence[Event] = (), metrics: Sequence[MetricBlock] = (), polled: bool = False) -> None:
        if not self._journal.survives_fork:
            self._ask("write", events, metrics)
            return
        blocks = [PackedBlock(b.run_id, b.model_id, pack_block(b)) for b in metrics]
        self._clock.observe(self._ask("clock"))
        with self._lock:
            self._journal.own.append(encode(self._clock.tick(), last_of_each(events), blocks), points=not events)

    def commit(self, decide: Callable[[], Sequence[Event]]) -> None:
        def attempt() -> bool:
            number, events = self._ask("names_number"), decide()
            return not events or self._ask("try_commit", number, events)

        insist(attempt)

    def settle(self, wait: bool = True, of: tuple[str, str] | None = None) -> None:
        if wait:
            self._ask("settle")

    def close(self) -> None:
        self._journal.own.close()


def _answered(method: Callable[P, T]) -> Callable[P, T]:
    """A method that lets no error of a library out, after which the lake's handles are made anew; of a forked child, `Forked` has it."""

    @wraps(method)
    def call(*arguments: P.args, **named: P.kwargs) -> T:
        lake: Any = arguments[0]
        if lake._forked is not None:
            answer: T = getattr(lake._forked, method.__name__)(*arguments[1:], **named)
            return answer
        try:
            return method(*arguments, **named)
        except BaseException as error:
            if not is_foreign(error):
                raise
            lake._forget_handles()
            raise explained(error, lake.uri.root) from error

    return call


def all_answered(lake: type[T]) -> type[T]:
    """Every public method of a lake so."""
    for name, member in list(vars(lake).items()):
        if not name.startswith("_") and callable(member):
            setattr(lake, name, _answered(member))
    return lake
