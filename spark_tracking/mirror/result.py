"""What a sync is asked for, and what it says it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from typing import Any

from mlflow.exceptions import MlflowException

from spark_tracking.kinds.catalog import KINDS
from spark_tracking.masking import masked
from spark_tracking.readers.pages import reason as why

ARTIFACT_MODES = ("copy", "reference", "none")


@dataclass(frozen=True)
class Wanted:
    """Which part of a source to take, and how: the options of `sync`; `since` is milliseconds since 1970."""

    experiments: tuple[str, ...] = ()
    filter: str | None = None
    since: int | None = None
    models: tuple[str, ...] | str = "all"
    artifacts: str = "reference"
    verify: bool = False
    dry_run: bool = False
    force: bool = False

    @property
    def key(self) -> str:
        """Names what was asked for: the same for the same."""
        return blake2b(repr(replace(self, verify=False, dry_run=False, force=False)).encode(), digest_size=8).hexdigest()

    @property
    def is_part(self) -> bool:
        """Whether some runs of the experiments are left out."""
        return self.filter is not None or self.since is not None


@dataclass
class Tally:
    """How many things of one kind: `seen` at the source, of these `new`, `changed`, `failed`; `written` changes of single values."""

    seen: int = 0
    new: int = 0
    changed: int = 0
    failed: int = 0
    written: int = 0

    def count(self, is_new: bool, written: int, points: int = 0) -> None:
        """Note a thing for which some values and points were written."""
        self.new += is_new
        self.changed += not is_new and bool(written or points)
        self.written += written


@dataclass(frozen=True)
class Failure:
    """One thing that could not be copied, and why; the next sync tries it again."""

    kind: str
    id: str
    reason: str


@dataclass
class SyncResult:
    """What a sync did.

    Attributes:
        source, target: their URIs, masked.
        things: by kind, see `Tally`.
        points: metric points written.
        files, bytes: artifacts copied.
        seconds: how long it took.
    """

    source: str
    target: str
    dry_run: bool = False
    things: dict[str, Tally] = field(default_factory=lambda: {kind.name: Tally() for kind in KINDS})
    points: int = 0
    files: int = 0
    bytes: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.source, self.target = masked(self.source, self.source), masked(self.target, self.target)

    @property
    def ok(self) -> bool:
        """Whether everything that was asked for is there now."""
        return not self.failures

    @property
    def wrote(self) -> int:
        """Changes made: values, points and files."""
        return sum(tally.written for tally in self.things.values()) + self.points + self.files

    def fail(self, kind: str, id: str, reason: object) -> None:
        """Note a thing that could not be copied."""
        self.things[kind].failed += 1
        first = str(reason).strip().splitlines() or [type(reason).__name__]
        if isinstance(reason, Exception) and not isinstance(reason, MlflowException):
            first = [f"What the source says of it is malformed: {why(reason)}."]
        self.failures.append(Failure(kind, id, masked(first[0])))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "ok": self.ok}


TO_GO = "runs to go"
Progress = Callable[[str, int], None]
"""Called with a kind and how many more of it are done, and once with `TO_GO` and how many runs there are, where that is known."""
