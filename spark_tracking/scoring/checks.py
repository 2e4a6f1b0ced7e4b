"""Whether the file-native path is allowed, and if not, why: it must never read or write a table wrongly.

A feature that is not known here to be harmless takes the UDF path, where Spark and Delta know what to do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from spark_tracking.lake.delta_files import Snapshot
    from spark_tracking.scoring.work import Work

# What a reader of plain Parquet files may ignore, given the conditions that `_unreadable` checks.
_HARMLESS_TO_READ = {
    "appendOnly",
    "invariants",
    "checkConstraints",
    "changeDataFeed",
    "generatedColumns",
    "allowColumnDefaults",
    "columnMapping",
    "identityColumns",
    "timestampNtz",
    "deletionVectors",
    "domainMetadata",
    "rowTracking",
    "clustering",
    "inCommitTimestamp",
    "vacuumProtocolCheck",
}
# What an append of plain Parquet files may ignore, given the conditions that `_unwritable` checks.
_HARMLESS_TO_WRITE = {"appendOnly", "invariants", "checkConstraints", "changeDataFeed", "generatedColumns", "timestampNtz"}
_ESCAPED = re.compile(r"[^A-Za-z0-9/_.=-]")
_UNUSUAL = frozenset(" ,;{}()\n\t=")
_PARTITION_TYPES = (pa.types.is_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_date32)


def unreadable(source: Snapshot) -> str | None:
    """Why workers cannot read the files of this table themselves; None if they can."""
    if strange := sorted(source.features - _HARMLESS_TO_READ):
        return f"the source has the table feature {strange[0]}"
    if source.configuration.get("delta.columnMapping.mode", "none") != "none":
        return "the source maps column names (delta.columnMapping.mode)"
    if source.deleted_rows:
        return "the source has deletion vectors"
    if elsewhere := next((file.path for file in source.files if file.path.startswith("/") or ":/" in file.path), None):
        return f"the source has files outside its folder ('{elsewhere}'), as a shallow clone has"
    return _strange_columns(source.schema, source.partition_by, "source")


def unwritable(target: Snapshot, mode: str) -> str | None:
    """Why this table's files cannot be committed directly; None if they can."""
    if strange := sorted(target.features - _HARMLESS_TO_WRITE):
        return f"the target has the table feature {strange[0]}"
    properties = target.configuration
    if any(name.startswith("delta.constraints.") for name in properties):
        return "the target has constraints"
    if properties.get("delta.enableChangeDataFeed", "false").lower() == "true":
        return "the target has a change data feed"
    if properties.get("delta.enableRowTracking", "false").lower() == "true":
        return "the target has row tracking"
    if properties.get("delta.columnMapping.mode", "none") != "none":
        return "the target maps column names (delta.columnMapping.mode)"
    if properties.get("delta.appendOnly", "false").lower() == "true" and mode != "append":
        return "the target only takes appends"
    if settings := sorted(name for name in target.column_settings if name != "comment"):
        return f"the target has columns with settings that Spark must see to ({settings[0]})"
    if mode != "append" and any(_ESCAPED.search(file.logged) for file in target.files):
        # delta-rs 1.6 writes the path of such a file in another form when it removes it, and Spark then still sees the file.
        return "the target has partitions whose names need escaping"
    if required := next((field.name for field in target.schema if not field.nullable), None):
        return f"the target's column '{required}' must not be null, which Spark checks"
    return _strange_columns(target.schema, target.partition_by, "target")


def unusual_name(names: Sequence[str]) -> str | None:
    """The first of these column names that a Delta table has only with column mapping."""
    return next((name for name in names if _UNUSUAL.intersection(name)), None)


def _strange_columns(schema: pa.Schema, partition_by: tuple[str, ...], which: str) -> str | None:
    if dotted := next((name for name in schema.names if "." in name), None):
        return f"the {which}'s column '{dotted}' has a dot in its name"
    for name in partition_by:
        if not any(fits(schema.field(name).type) for fits in _PARTITION_TYPES):
            return f"the {which}'s partition column '{name}' is {schema.field(name).type}"
    return None


def unsuitable(work: Work) -> str | None:
    """Why this work needs Spark whatever its tables are; None if it does not."""
    if work.plan is None:
        return "a Spark ML model scores by its own transform"
    if work.mode == "merge":
        return "merging by key is Spark's work"
    if work.source.place is None:
        return "the source is a DataFrame"
    if not work.source.is_delta:
        return f"the source is no Delta table but {work.source.place.format}"
    if work.source.place.location is None:
        return "the catalog does not say where the source's files are"
    return None


def different(target: Snapshot, output: pa.Schema) -> str | None:
    """Why the rows do not go into this table as they are; None if they do."""
    if {field.name: field.type for field in target.schema} != {field.name: field.type for field in output}:
        return "the target's columns are not those that would be written"
    return None
