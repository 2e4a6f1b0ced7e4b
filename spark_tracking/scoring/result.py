"""What a scoring job did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class ScoreResult:
    """What a scoring job did.

    Attributes:
        status: `scored`, or `nothing new` where the job had done this work before.
        target: path or name of the target.
        target_version: its Delta version after the commit; None if nothing was committed.
        rows: rows written.
        failed: of these, rows whose error was reported (with `on_error="report"`).
        seconds: wall time of the whole call.
        strategy: `files` or `udf`.
        reason: why this strategy.
        model: the model's name, version, alias, run and digest.
        source, source_version: what was read.
        job: the job's name, if it has one.
        run_id: the MLflow run that recorded it (with `track=True`).
    """

    status: Literal["scored", "nothing new"]
    target: str
    target_version: int | None
    rows: int
    failed: int
    seconds: float
    strategy: str
    reason: str
    model: Mapping[str, str | None]
    source: str
    source_version: int | None
    job: str | None = None
    run_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        name = self.model["model_name"]
        model = f"{name} version {self.model['model_version']}" if name else str(self.model["model_uri"])
        if self.status == "nothing new":
            return f"Nothing new in {self.source} for {self.target} (looked for {self.seconds:.1f} s)."
        rate = self.rows / self.seconds if self.seconds else 0.0
        failed = f", {self.failed:,} of them failed" if self.failed else ""
        return (
            f"{self.rows:,} rows scored with {model} into {self.target} version {self.target_version}{failed} "
            f"({self.seconds:.1f} s, {rate:,.0f} rows/s, strategy {self.strategy}: {self.reason})."
        )
