"""Reading Delta tables in the layout of Databricks' `system.mlflow`, wherever they lie."""

from __future__ import annotations

from spark_tracking.lake.system_tables import SystemTables
from spark_tracking.readers.lake import LakeReader


class SystemTablesReader(LakeReader):
    """Three Delta tables, which are read as a lake's are."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._lake = SystemTables(root)  # type: ignore[assignment]

    @property
    def name(self) -> str:
        return f"the Delta tables in {self._root}"
