"""Delta's statistics and partition texts for a Parquet file that we wrote.

Format: "Per-file Statistics" and "Partition Value Serialization" in
https://github.com/delta-io/delta/blob/master/PROTOCOL.md. A bound may be too wide, never too narrow: readers skip by it.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Container
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_COLUMNS = 32  # Delta's default: statistics of the first 32 columns
_TEXT = 64  # longer texts get no bounds


def statistics(footer: pq.FileMetaData, schema: pa.Schema, skip: Container[str] = ()) -> dict[str, Any]:
    """Row count, and per simple column its bounds and null count.

    Args:
        footer: of the file, with Parquet's own statistics.
        schema: its Arrow schema.
        skip: columns without bounds: those with NaN, which Parquet leaves out and Spark takes for the largest number.

    Example:
        >>> statistics(pq.read_metadata("a.parquet"), schema)
        {'numRecords': 2, 'minValues': {'id': 1}, 'maxValues': {'id': 2}, 'nullCount': {'id': 0}}
    """
    simple = {field.name: field.type for field in list(schema)[:_COLUMNS] if not pa.types.is_nested(field.type)}
    low: dict[str, Any] = {}
    high: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    unknown = set()
    for group in range(footer.num_row_groups):
        for place in range(footer.num_columns):
            column = footer.row_group(group).column(place)
            name, found = column.path_in_schema, column.statistics
            if name not in simple:
                continue
            if found is None or found.null_count is None:
                unknown.add(name)
                continue
            nulls[name] = nulls.get(name, 0) + found.null_count
            if found.has_min_max:
                low[name] = min(low.get(name, found.min), found.min)
                high[name] = max(high.get(name, found.max), found.max)
            elif found.null_count < footer.row_group(group).num_rows:
                unknown.add(name)
    bounds = {name: (_bound(low[name], False), _bound(high[name], True)) for name in low if name not in unknown and name not in skip}
    return {
        "numRecords": footer.num_rows,
        "minValues": {name: pair[0] for name, pair in bounds.items() if None not in pair},
        "maxValues": {name: pair[1] for name, pair in bounds.items() if None not in pair},
        "nullCount": {name: count for name, count in nulls.items() if name not in unknown},
    }


def _bound(value: Any, upper: bool) -> Any:
    """A value as Delta's JSON has it; None where it has no exact or safe form."""
    if isinstance(value, (bool, int)):
        return None if isinstance(value, bool) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value if len(value) <= _TEXT else None
    if isinstance(value, dt.datetime):  # milliseconds are all that Delta keeps
        whole = value.replace(microsecond=value.microsecond // 1000 * 1000) + dt.timedelta(milliseconds=1 if upper else 0)
        text = whole.replace(tzinfo=None).isoformat(timespec="milliseconds")
        return text + "Z" if value.tzinfo else text
    return value.isoformat() if isinstance(value, dt.date) else None


def partition_text(value: Any) -> str | None:
    """A partition value as the log writes it."""
    if value is None or value == "":
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)
