"""What scoring jobs' commits say, and what of it stands in a table's log. Needs no Spark and no tracking server."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_KEY = "spark_tracking_score"


@dataclass(frozen=True)
class Committed:
    """What a strategy committed: the target's version (None if another run of the job had done the work), rows, and rows that failed."""

    version: int | None
    rows: int
    failed: int


@dataclass(frozen=True)
class ScoredCommit:
    """One commit of a scoring job: the target's version, when (UTC), Delta's name for it, rows written where it says so, and as
    `facts` the model, run, digest, source and its version, job, mode, strategy."""

    version: int
    time: dt.datetime
    operation: str
    rows: int | None
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"version": self.version, "time": self.time.isoformat(), "operation": self.operation, "rows": self.rows, **self.facts}


def history(target: str, limit: int | None = None) -> list[ScoredCommit]:
    """The scoring jobs' commits among a Delta table's newest `limit` (None: all), newest first.

    Raises:
        NotFound: there is no such table.

    Example:
        >>> [(commit.version, commit.facts["model_version"]) for commit in history("/data/scored")]
        [(1, '4'), (0, '3')]
    """
    from spark_tracking.delta import files as delta_files

    found = []
    for commit in delta_files.history(target, limit):
        if (facts := scoring_facts(commit.get("userMetadata"))) is not None:
            time = dt.datetime.fromtimestamp(commit["timestamp"] / 1000, dt.timezone.utc)
            found.append(ScoredCommit(commit["version"], time, commit["operation"], _rows(commit, facts), facts))
    return found


def user_metadata(facts: Mapping[str, Any]) -> str:
    """What a job says of itself, as the text that Delta keeps with a commit."""
    return json.dumps({_KEY: facts})


def scoring_facts(user_metadata: str | None) -> dict[str, Any] | None:
    """What a commit's `userMetadata` says of a scoring job; None if it is of something else."""
    try:
        known = json.loads(user_metadata or "{}")
    except ValueError:
        return None
    facts = known.get(_KEY) if isinstance(known, dict) else None
    return facts if isinstance(facts, dict) else None


def _rows(commit: dict[str, Any], facts: dict[str, Any]) -> int | None:
    if "rows" in facts:
        return int(facts["rows"])
    metrics = commit.get("operationMetrics") or {}
    count = metrics.get("numSourceRows", metrics.get("numOutputRows"))
    return None if count is None else int(count)
