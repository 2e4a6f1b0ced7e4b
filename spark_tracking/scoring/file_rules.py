"""What keeps workers from reading a table's files, or this client from committing files to it: they must never do it wrongly.

A feature that is not known here to be harmless takes the strategy `udf`, where Spark and Delta know what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from spark_tracking.delta.files import Snapshot

# What an append of plain Parquet files may ignore, given the reasons of `against_writing`.
_HARMLESS_TO_WRITE = {"appendOnly", "invariants", "checkConstraints", "changeDataFeed", "generatedColumns", "timestampNtz"}
# What a reader of plain Parquet files may ignore, given the reasons of `against_reading`.
_HARMLESS_TO_READ = _HARMLESS_TO_WRITE | {
    "allowColumnDefaults",
    "columnMapping",
    "identityColumns",
    "deletionVectors",
    "domainMetadata",
    "rowTracking",
    "clustering",
    "inCommitTimestamp",
    "vacuumProtocolCheck",
}
_ESCAPED = re.compile(r"[^A-Za-z0-9/_.=-]")
_UNUSUAL = frozenset(" ,;{}()\n\t=")
_PARTITION_TYPES = (pa.types.is_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_date32)


def against_reading(source: Snapshot) -> Iterator[str]:
    """Why workers cannot read the files of this table themselves."""
    yield from (f"the source has the table feature {name}" for name in sorted(source.features - _HARMLESS_TO_READ))
    if source.configuration.get("delta.columnMapping.mode", "none") != "none":
        yield "the source maps column names (delta.columnMapping.mode)"
    if source.deleted_rows:
        yield "the source has deletion vectors"
    elsewhere = (file.path for file in source.files if file.path.startswith("/") or ":/" in file.path)
    yield from (f"the source has files outside its folder ('{path}'), as a shallow clone has" for path in elsewhere)
    yield from _against_columns(source, "source")


def against_writing(target: Snapshot, mode: str, output: pa.Schema) -> Iterator[str]:
    """Why files with this schema cannot be committed to this table directly."""
    properties = target.configuration
    on = {name for name, value in properties.items() if value.lower() == "true"}
    yield from (f"the target has the table feature {name}" for name in sorted(target.features - _HARMLESS_TO_WRITE))
    if any(name.startswith("delta.constraints.") for name in properties):
        yield "the target has constraints"
    if "delta.enableChangeDataFeed" in on:
        yield "the target has a change data feed"
    if "delta.enableRowTracking" in on:
        yield "the target has row tracking"
    if properties.get("delta.columnMapping.mode", "none") != "none":
        yield "the target maps column names (delta.columnMapping.mode)"
    if "delta.appendOnly" in on and mode != "append":
        yield "the target only takes appends"
    settings = sorted(target.column_settings - {"comment"})
    yield from (f"the target has columns with settings that Spark must see to ({name})" for name in settings)
    if mode != "append" and any(_ESCAPED.search(file.logged) for file in target.files):
        # delta-rs 1.6 writes the path of such a file in another form when it removes it, and Spark then still sees the file.
        yield "the target has partitions whose names need escaping"
    yield from (f"the target's column '{field.name}' must not be null, which Spark checks" for field in target.schema if not field.nullable)
    yield from _against_columns(target, "target")
    if {field.name: field.type for field in target.schema} != {field.name: field.type for field in output}:
        yield "the target's columns are not those that would be written"


def _against_columns(table: Snapshot, which: str) -> Iterator[str]:
    yield from (f"the {which}'s column '{name}' has a dot in its name" for name in table.schema.names if "." in name)
    kinds = {name: table.schema.field(name).type for name in table.partition_by}
    strange = ((name, kind) for name, kind in kinds.items() if not any(fits(kind) for fits in _PARTITION_TYPES))
    yield from (f"the {which}'s partition column '{name}' is {kind}" for name, kind in strange)


def unusual_name(names: Iterable[str]) -> str | None:
    """The first of these column names that a Delta table has only with column mapping."""
    return next((name for name in names if _UNUSUAL.intersection(name)), None)
