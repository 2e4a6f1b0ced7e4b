"""The files of a Delta table as an Arrow dataset: the one place that makes one.

Arrow reads ahead in threads of its own. No Python object may be in their hands when the interpreter ends, or the process
aborts after its work is done: so a folder is read through Arrow's own file system, and an object store's files are fetched
whole, one request each, into Arrow's memory. The dataset of `deltalake` has a file system written in Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from spark_tracking.lake.storage import Storage

_FETCHED_AT_ONCE = 16


def of(delta: DeltaTable, files: Storage, folder: str) -> ds.FileSystemDataset:
    """The files that the handle's version has, with their ranges; `readable` opens them.

    Args:
        folder: the table's, relative to the storage's root.
    """
    root = f"{files.root}/{folder}" if files.is_local else f"/{folder}"  # of an object store it only carries the names
    return delta.to_pyarrow_dataset(filesystem=SubTreeFileSystem(root, LocalFileSystem()))


def readable(dataset: ds.FileSystemDataset, files: Storage, folder: str, where: ds.Expression | None) -> Iterator[ds.Dataset]:
    """The files that may hold rows that match, in pieces of bounded size which together are the whole.

    Raises:
        FileNotFoundError: one of an object store's files is gone.
    """
    if files.is_local:
        yield dataset
        return
    matching = dataset.get_fragments(where)
    fragments = list(islice(matching, _FETCHED_AT_ONCE))
    while fragments:
        contents = files.fetch([f"{folder}/{fragment.path}" for fragment in fragments])
        opened = [
            dataset.format.make_fragment(pa.BufferReader(content), partition_expression=fragment.partition_expression)
            for fragment, content in zip(fragments, contents)
        ]
        yield ds.FileSystemDataset(opened, dataset.schema, dataset.format)
        fragments = list(islice(matching, _FETCHED_AT_ONCE))
