"""The maintenance job, for schedulers: what keeps a lake small, in one call. Safe beside writers and readers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from spark_tracking.lake import Lake
from spark_tracking.store.purge import purge_deleted


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


def maintain(lake: str, *, older_than_days: float | None = None, keep_hours: float = 24.0, dry_run: bool = False) -> Maintained:
    """Flush, refresh, purge the trash after its retention, compact, vacuum.

    Args:
        lake: URI or folder.
        older_than_days: how long the trash is kept; default the lake's retention.
        keep_hours: files that were in use since stay.
        dry_run: remove and merge nothing, only tell.

    Example:
        >>> maintain("delta:///shared/lake").compacted["events"]
        12
    """
    opened = Lake.open(lake)
    refreshed = opened.refresh()
    purged = {kind: len(ids) for kind, ids in purge_deleted(lake, older_than_days, dry_run).items()}
    dropped = 0 if dry_run else opened.drop_purged()
    compacted = {} if dry_run else opened.compact()
    vacuumed = {name: len(files) for name, files in opened.vacuum(timedelta(hours=keep_hours), dry_run).items()}
    return Maintained(refreshed, purged, dropped, compacted, vacuumed)
