"""What tells a changed row from an unchanged one: a digest of each row of a batch, made in columns."""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b

import pyarrow as pa
import pyarrow.compute as pc

DIGEST_BYTES = 16
_ITEM, _PART, _NULL = "\x1e", "\x1f", "\x00"


def digests(batch: pa.RecordBatch, leave_out: Collection[str] = (), also: list[int] | None = None) -> list[bytes]:
    """A digest of each row.

    Args:
        leave_out: columns that say nothing about a change.
        also: one more number a row, such as how many points a run has.

    Example:
        >>> one, two = digests(pa.record_batch({"a": [1, 1], "b": [None, "x"]}))
        >>> one == two
        False
    """
    columns = [text(column) for name, column in zip(batch.schema.names, batch.columns) if name not in leave_out]
    if also is not None:
        columns.append(pa.array(also, pa.int64()).cast(pa.string()))
    joined = pc.binary_join_element_wise(*columns, _ITEM) if columns else pa.array([], pa.string())
    return [blake2b(value.as_buffer(), digest_size=DIGEST_BYTES).digest() for value in joined]


def text(array: pa.Array) -> pa.Array:
    """Any array as text, one string a value, whatever is nested in it."""
    kind = array.type
    if pa.types.is_map(kind) or pa.types.is_list(kind):
        parts = [array.keys, array.items] if pa.types.is_map(kind) else [array.values]
        values = text(parts[0]) if len(parts) == 1 else pc.binary_join_element_wise(*map(text, parts), _PART)
        lists = pa.ListArray.from_arrays(array.offsets, values)
        return pc.if_else(pc.is_valid(array), pc.binary_join(lists, _ITEM), _NULL)
    if pa.types.is_struct(kind):
        fields = [text(pc.struct_field(array, i)) for i in range(kind.num_fields)]
        return pc.binary_join_element_wise(*fields, _PART)
    if pa.types.is_float64(kind):
        array = array.view(pa.int64())  # NaN and the infinities as well, and no digit lost
    elif pa.types.is_timestamp(kind):
        array = array.cast(pa.int64())
    return pc.fill_null(array.cast(pa.string()), _NULL)
