"""Where tables lie: a folder or an object store, and which of the two a root is.

A folder has locks, links and files that grow; an object store has objects that are written whole, once. Everything above
is the same on both.
"""

from __future__ import annotations

from functools import lru_cache

from spark_tracking.delta.folder import Folder
from spark_tracking.delta.object_store import ObjectStore

Storage = Folder | ObjectStore


@lru_cache(maxsize=64)
def of(root: str) -> Storage:
    """The storage of a root as `LakeUri.root` gives it; one instance a process.

    Raises:
        InvalidSetting: the root is a cloud URL and what talks to it is not installed.
    """
    return ObjectStore(root) if "://" in root else Folder(root)
