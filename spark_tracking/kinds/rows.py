"""Entities as rows of the derived tables."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from spark_tracking.kinds.catalog import BY_NAME
from spark_tracking.kinds.state import Entity

STATE = pa.field("state", pa.binary())
"""The hidden column: everything that is needed to fold later events into a row."""


def rows(kind: str, entities: Iterable[Entity]) -> pa.Table:
    """The rows of those entities that exist, sorted by key, in the schema of the kind's derived table."""
    spec = BY_NAME[kind]
    shown = sorted((e for e in entities if e.exists), key=lambda e: e.id)
    columns = [pa.array([c.shape.cell(e, c.register) for e in shown], c.shape.type) for c in spec.columns]
    state = pa.array([e.pack() for e in shown], STATE.type)
    return pa.Table.from_arrays([*columns, state], schema=spec.schema.append(STATE))
