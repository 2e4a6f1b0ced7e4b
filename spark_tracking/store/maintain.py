"""The maintenance job, for schedulers: what keeps a lake small, in one call. Safe beside writers and readers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from spark_tracking.lake import Lake
from spark_tracking.store.trash import purge_deleted


@dataclass(frozen=True)
class Maintained:
    """What a maintenance did: derived rows that changed, things by kind that left the trash for good and their rows that left the
    logs, files by table that were merged and removed.
    """

    refreshed: int
    purged: dict[str, int]
    dropped: int
    compacted: dict[str, int]
    vacuumed: dict[str, int]

    def rows(self) -> list[tuple[str, str, int]]:
        """What was done as a table: step, of what, how many."""
        found = [("refresh", "rows", self.refreshed)]
        found += [("purge", kind, count) for kind, count in self.purged.items()]
        found.append(("drop purged", "rows", self.dropped))
        found += [("compact", f"files of {table}", count) for table, count in self.compacted.items()]
        return found + [("vacuum", f"files of {table}", count) for table, count in self.vacuumed.items()]

    def __str__(self) -> str:
        """The table as text."""
        return "\n".join(f"{step:<14}{what:<36}{count:>10,}" for step, what, count in self.rows())


def maintain(lake: str, *, older_than_days: float | None = None, keep_hours: float = 24.0, dry_run: bool = False) -> Maintained:
    """Flush, refresh, purge the trash after `older_than_days` (default its retention), compact, vacuum; files used since `keep_hours` stay.

    With `dry_run` nothing is removed or merged, only told.

    Example:
        >>> print(maintain("delta:///shared/lake"))
        refresh       rows                                       812
        …
    """
    opened = Lake.open(lake)
    refreshed = opened.refresh()
    purged = {kind: len(ids) for kind, ids in purge_deleted(lake, older_than_days, dry_run).items()}
    dropped = 0 if dry_run else opened.drop_purged()
    compacted = {} if dry_run else opened.compact()
    vacuumed = {name: len(files) for name, files in opened.vacuum(timedelta(hours=keep_hours), dry_run).items()}
    return Maintained(refreshed, purged, dropped, compacted, vacuumed)
