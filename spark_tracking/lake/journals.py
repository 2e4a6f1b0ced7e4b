"""The journal of a lake, whichever storage it has."""

from __future__ import annotations

from pathlib import Path

from spark_tracking.delta.folder import Folder
from spark_tracking.delta.storage import Storage
from spark_tracking.lake.journal import Journal
from spark_tracking.lake.object_journal import ObjectJournal

AnyJournal = Journal | ObjectJournal


def journal_of(files: Storage, sync: bool = True) -> AnyJournal:
    """A handle of the journal; with `sync`, a call is on disk before it returns."""
    return Journal(Path(files.root), sync) if isinstance(files, Folder) else ObjectJournal(files)
