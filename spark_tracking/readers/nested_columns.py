"""Columns of maps and lists from rows of keys and values, without touching a row in Python; and columns as a batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def maps(owners: pa.Array, rows: pa.Table, type_: pa.MapType) -> pa.Array:
    """For each owner the map of its keys, sorted by key.

    Args:
        owners: ids, each once.
        rows: the columns owner, key and value in this order, in any order of rows; those of other owners are left out.

    Example:
        >>> rows = pa.table({"run": ["b", "a", "a"], "key": ["x", "y", "x"], "value": ["1", "2", "3"]})
        >>> maps(pa.array(["a", "b"]), rows, pa.map_(pa.string(), pa.string())).to_pylist()
        [[('x', '3'), ('y', '2')], [('x', '1')]]
    """
    order, offsets = _grouped(owners, rows.column(0), rows.column(1))
    keys, values = (rows.column(i).take(order) for i in (1, 2))
    return pa.MapArray.from_arrays(offsets, _one(keys, type_.key_type), _one(values, type_.item_type)).cast(type_)


def lists(owners: pa.Array, rows: pa.Table, type_: pa.ListType) -> pa.Array:
    """For each owner the list of its values, or structs by their first field: `rows` has the owner, then the value or the fields."""
    order, offsets = _grouped(owners, rows.column(0), rows.column(1))
    item = type_.value_type
    if not pa.types.is_struct(item):
        return pa.ListArray.from_arrays(offsets, _one(rows.column(1).take(order), item)).cast(type_)
    fields = [_one(rows.column(i + 1).take(order), item.field(i).type) for i in range(item.num_fields)]
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(fields, fields=list(item))).cast(type_)


def _grouped(owners: pa.Array, owner: pa.ChunkedArray, key: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """The rows in order of owner and key, and where each owner's begin."""
    if not len(owner):
        return pa.array([], pa.int64()), pa.array(np.zeros(len(owners) + 1, np.int32))
    position = _one(pc.index_in(owner, value_set=owners), pa.int32())
    known = pc.is_valid(position).to_numpy(zero_copy_only=False)
    position = position.fill_null(0).to_numpy()
    encoded = _one(key, key.type).dictionary_encode()
    # A few names many times over: sorting their ranks is sorting integers.
    ranks = pc.rank(encoded.dictionary, sort_keys="ascending", tiebreaker="first").to_numpy().astype(np.int64)
    combined = position * (len(ranks) + 1) + ranks[encoded.indices.to_numpy()]
    indices = np.flatnonzero(known)
    order = indices[np.argsort(combined[indices], kind="stable")]
    counts = np.bincount(position[indices], minlength=len(owners))
    return pa.array(order), pa.array(np.concatenate(([0], np.cumsum(counts))).astype(np.int32))


def _one(column: pa.ChunkedArray | pa.Array, type_: pa.DataType) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.cast(type_)


def batch_of(schema: pa.Schema, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> pa.RecordBatch:
    """The columns of a schema, null where there are none of that name; a time of deletion only of what is in the trash."""
    rows = len(next(iter(columns.values())))
    if "delete_time" in columns:
        deleted = pc.equal(columns["lifecycle_stage"], "deleted")
        columns = {**columns, "delete_time": pc.if_else(deleted, columns["delete_time"], None)}
    arrays = [_one(columns[f.name], f.type) if f.name in columns else pa.nulls(rows, f.type) for f in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
