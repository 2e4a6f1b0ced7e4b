"""Delta's statistics and partition texts for a Parquet file that we wrote.

Format: "Per-file Statistics" and "Partition Value Serialization" in
https://github.com/delta-io/delta/blob/master/PROTOCOL.md. A bound may be too wide, never too narrow: readers skip by it.
"""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_COLUMNS = 32  # Delta's default: statistics of the first 32 columns
_TEXT = 64  # longer texts get no bounds


class FloatBounds:
    """Bounds of a file's floating columns; none for a column with NaN.

    Arrow leaves NaN out of Parquet's statistics while Spark takes it for the largest number and would skip it by them. So our
    files have no such statistics for floating columns, and these bounds stand in for them in Delta's log.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.names = [field.name for field in schema if pa.types.is_floating(field.type)]
        self.nulls = dict.fromkeys(self.names, 0)
        self.bounds: dict[str, tuple[float, float]] = {}
        self._with_nan: set[str] = set()

    def add(self, table: pa.Table) -> None:
        """Take more rows of the file into account."""
        for name in self.names:
            column = table[name]
            self.nulls[name] += column.null_count
            if name in self._with_nan or column.null_count == len(column):
                continue
            if pc.any(pc.is_nan(column)).as_py():
                self._with_nan.add(name)
                self.bounds.pop(name, None)
                continue
            found = pc.min_max(column)
            low, high = found["min"].as_py(), found["max"].as_py()
            before = self.bounds.get(name, (low, high))
            self.bounds[name] = (min(low, before[0]), max(high, before[1]))


def statistics(footer: pq.FileMetaData, schema: pa.Schema, floats: FloatBounds) -> dict[str, Any]:
    """Row count, and per simple column its bounds and null count; `floats` stands in for the footer's floating columns.

    Example:
        >>> statistics(pq.read_metadata("a.parquet"), schema, FloatBounds(schema))
        {'numRecords': 2, 'minValues': {'id': 1}, 'maxValues': {'id': 2}, 'nullCount': {'id': 0}}
    """
    simple = {field.name for field in list(schema)[:_COLUMNS] if not pa.types.is_nested(field.type)}
    pairs = {name: pair for name, pair in floats.bounds.items() if name in simple}
    nulls = {name: count for name, count in floats.nulls.items() if name in simple}
    unknown = set()
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    for group, place in ((group, place) for group in groups for place in range(footer.num_columns)):
        name, found = group.column(place).path_in_schema, group.column(place).statistics
        if name not in simple or name in floats.names:
            continue
        if found is None or found.null_count is None:
            unknown.add(name)
            continue
        nulls[name] = nulls.get(name, 0) + found.null_count
        if found.has_min_max:
            low, high = pairs.get(name, (found.min, found.max))
            pairs[name] = (min(low, found.min), max(high, found.max))
        elif found.null_count < group.num_rows:
            unknown.add(name)
    bounds = {name: (_bound(low, False), _bound(high, True)) for name, (low, high) in pairs.items() if name not in unknown}
    return {
        "numRecords": footer.num_rows,
        "minValues": {name: pair[0] for name, pair in bounds.items() if None not in pair},
        "maxValues": {name: pair[1] for name, pair in bounds.items() if None not in pair},
        "nullCount": {name: count for name, count in nulls.items() if name not in unknown},
    }


def _bound(value: Any, upper: bool) -> Any:
    """A value as Delta's JSON has it; None where it has no exact or safe form."""
    if isinstance(value, dt.datetime):  # milliseconds are all that Delta keeps
        whole = value.replace(microsecond=value.microsecond // 1000 * 1000) + dt.timedelta(milliseconds=1 if upper else 0)
        text = whole.replace(tzinfo=None).isoformat(timespec="milliseconds")
        return text + "Z" if value.tzinfo else text
    if isinstance(value, dt.date):
        return value.isoformat()
    exact = type(value) is int or (isinstance(value, float) and math.isfinite(value)) or (isinstance(value, str) and len(value) <= _TEXT)
    return value if exact else None


def partition_text(value: Any) -> str | None:
    """A partition value as the log writes it."""
    if value is None or value == "":
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)
