"""The maintenance job, for schedulers: what keeps a lake small, in one call. Safe beside writers and readers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from spark_tracking.lake import Lake
from spark_tracking.store.trash import purge_deleted


@dataclass(frozen=True)
class Maintained:
    """What a maintenance did.

    Attributes:
        refreshed: rows of the derived tables that changed.
        purged: by kind, how many things left the trash for good.
        dropped: rows of purged things that left the logs.
        compacted, vacuumed: by table, files merged and files removed.
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
    """Flush, refresh, purge the trash after its retention, compact, vacuum.

    Args:
        lake: URI or folder.
        older_than_days: how long the trash is kept; default the lake's retention.
        keep_hours: files that were in use since stay.
        dry_run: remove and merge nothing, only tell.

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
