"""Delta tables of others, of which nothing outside their folders is read."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from datetime import datetime
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from spark_tracking import config
from spark_tracking.delta.query import Query
from spark_tracking.errors import PermissionRefused, Unavailable


class ForeignTable:
    """A table at a version or a time, or the newest.

    Attributes:
        columns: the names of its columns.
        rows: what stands in it.

    Raises:
        PermissionRefused: its log names a file elsewhere, or a link leads there.
        Unavailable: it cannot be read.
    """

    def __init__(self, root: str, name: str, version: int | None = None, as_of: datetime | None = None) -> None:
        self.uri = f"{root}/{name}"
        try:
            delta = DeltaTable(self.uri, version=version)
            if as_of is not None:
                delta.load_as_version(as_of)
            self._require_inside(root, delta)
            self.columns = {field.name for field in delta.schema().fields}
            self.rows = Query.of(delta)
        except (DeltaError, OSError) as error:
            raise Unavailable(f"The Delta table {self.uri} cannot be read: {error}") from error

    def _require_inside(self, root: str, delta: DeltaTable) -> None:
        if config.FOREIGN_FILES.get():
            return
        named, home = pa.table(delta.get_add_actions())["path"].to_pylist(), os.path.realpath(root) + os.sep
        outside = [path for path in named if _leads_out(path)]
        if "://" not in root and not outside:
            log = [f"_delta_log/{name}" for name in os.listdir(f"{self.uri}/_delta_log")]
            outside = [path for path in (*named, *log) if not os.path.realpath(f"{self.uri}/{unquote(path)}").startswith(home)]
        if outside:
            raise PermissionRefused(
                f"The Delta table {self.uri} names '{outside[0][:200]}', which lies outside of its folder. Nothing of it is read. "
                f"If that is meant, as in a shallow clone, set {config.FOREIGN_FILES.name}=true."
            )


def _leads_out(path: str) -> bool:
    decoded = path
    while (more := unquote(decoded)) != decoded:
        decoded = more
    return (
        decoded.startswith(("/", "\\"))
        or re.match(r"[A-Za-z][\w+.-]*:", decoded) is not None
        or ".." in re.split(r"[/\\]", decoded)
        or "\0" in decoded
    )


def are_tables(root: str, names: Sequence[str]) -> bool:
    """Whether each of these folders of a root is a Delta table."""
    try:
        return all(DeltaTable.is_deltatable(f"{root}/{name}") for name in names)
    except (DeltaError, OSError, ValueError):
        return False


def versions(root: str, names: Sequence[str]) -> list[int] | None:
    """Which version each of these Delta tables of a root has; None where one cannot be read."""
    try:
        return [DeltaTable(f"{root}/{name}").version() for name in names]
    except DeltaError:
        return None
