"""A Delta table as a process follows it: version by version, with its application transactions.

A segment's position in a log, and a log's version in a derived table, are Delta application transactions that stand in the
very commit that wrote the rows, so each row gets in exactly once, whoever writes, however often it is killed.

Arrow reads ahead in threads of its own. No Python object may be in their hands when the interpreter ends, or the process
aborts after its work is done: so a folder is read through Arrow's own file system, and an object store's files are fetched
whole, one request each, into Arrow's memory. The dataset of `deltalake` has a file system written in Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from operator import and_

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from spark_tracking.delta import storage
from spark_tracking.delta.commit_log import CommitLog, Gone
from spark_tracking.delta.faults import explained, is_foreign
from spark_tracking.delta.folder import File

_PROPERTIES = WriterProperties(compression="ZSTD", compression_level=3)
_HOOKS = PostCommitHookProperties(cleanup_expired_logs=False)
"""A look at the whole log after each commit costs more than the commit; see `Table.clean_log`."""
COMPACT_EVERY = 64
"""Commits of a table between two compactions, which bounds its live files and what a compaction costs a commit."""
FULL_FILES = 64
"""Files of a table beyond which they are made larger, as every reader looks at the list of them."""
_FETCHED_AT_ONCE = 16


class Raced(Exception):
    """Another process committed first; read again, decide again."""


@dataclass(frozen=True)
class TableSpec:
    """One Delta table of a lake.

    Attributes:
        name: the folder below the root, and the table's name in SQL.
        schema: the Arrow schema, hidden columns included.
        ranges: columns by whose ranges files are left out; they have no nulls.
        file_bytes: the size of its files; more for a large table.
        kind: for a derived table, the kind of entity that its rows are.
        key: for a derived table, the column that identifies a row; equals the events' `id`.
        properties: Delta table properties at creation.
    """

    name: str
    schema: pa.Schema
    ranges: tuple[str, ...]
    file_bytes: int
    properties: Mapping[str, str]
    kind: str = ""
    key: str = ""


class Table:
    """One Delta table below a root.

    Attributes:
        commits: its log.
        seen: the newest version whose commit this process has looked at.
    """

    def __init__(self, root: str, spec: TableSpec) -> None:
        self.spec = spec
        self.uri = f"{root}/{spec.name}"
        self._files = storage.of(root)
        self.commits = CommitLog(self._files, spec.name)
        self.delta = DeltaTable(self.uri)
        self.seen = self.delta.version()
        self._dataset: tuple[int, ds.FileSystemDataset] | None = None
        self._transactions: dict[str, int | None] = {}
        self._transactions_at = self.seen
        self._greatest_until: dict[str, tuple[int, int]] = {}  # by column, up to a version

    @staticmethod
    def create(root: str, spec: TableSpec) -> None:
        """Make the table; one that is there stays as it is."""
        try:
            DeltaTable.create(f"{root}/{spec.name}", schema=spec.schema, mode="ignore", configuration=dict(spec.properties))
        except CommitFailedError:
            DeltaTable(f"{root}/{spec.name}")  # another process has just made it, else this says why not

    @staticmethod
    def columns(root: str, spec: TableSpec) -> set[str] | None:
        """The columns that the table in that place has; None where there is none."""
        try:
            return {field.name for field in DeltaTable(f"{root}/{spec.name}").schema().fields}
        except TableNotFoundError:
            return None

    def version(self) -> int:
        """The version of the handle."""
        return int(self.delta.version())

    def update(self) -> int:
        """Bring the handle to the newest version; returns it."""
        if self._files.patience or self.commits.has_news(self.version()):  # where a look is cheap, it spares Delta's listing of the log
            self.delta.update_incremental()
        return self.version()

    def reopen(self) -> None:
        """A new handle, on the newest version, that knows nothing of before."""
        self.delta = DeltaTable(self.uri)
        self._dataset, self._transactions, self._transactions_at = None, {}, self.version()
        self._greatest_until.clear()

    def transaction(self, name: str) -> int | None:
        """The value of an application transaction at the handle's version.

        Delta looks for it in all commits since the last checkpoint, so that is asked once a name, and then each new commit is.
        """
        version = self.version()
        try:
            for commit in self.commits.after(self._transactions_at) if version > self._transactions_at else ():
                if commit.version > version:
                    break
                self._transactions.update(commit.transactions)
        except Gone:
            self._transactions.clear()
        self._transactions_at = version
        if name not in self._transactions:
            self._transactions[name] = self.delta.transaction_version(name)
        return self._transactions[name]

    def append(self, rows: pa.Table, transactions: Mapping[str, int], retired: Mapping[str, int] | None = None) -> None:
        """Append rows in one commit with its transactions.

        Args:
            retired: transactions that go with the next checkpoint; the others never expire.

        Raises:
            Raced: somebody else's commit conflicts; nothing was written.
        """
        self._write(rows, None, transactions, retired or {}, None)

    def rewrite(self, rows: pa.Table, predicate: str | None, transactions: Mapping[str, int]) -> None:
        """Replace the rows that match `predicate` ("": all rows; None: no row) by `rows`, in one commit.

        Raises:
            Raced: somebody else's commit conflicts; nothing was written.
        """
        self._write(rows, predicate, transactions, {}, self.file_bytes())

    def _write(
        self, rows: pa.Table, predicate: str | None, live: Mapping[str, int], retired: Mapping[str, int], file_bytes: int | None
    ) -> None:
        transactions = [Transaction(*one) for one in live.items()] + [Transaction(*one, 1) for one in retired.items()]
        with _races(self._files.root):
            write_deltalake(  # type: ignore[call-overload]  # the overloads know no computed mode
                self.delta,
                rows,
                mode="append" if predicate is None else "overwrite",
                predicate=predicate or None,
                target_file_size=file_bytes,
                writer_properties=_PROPERTIES,
                post_commithook_properties=_HOOKS,
                commit_properties=CommitProperties(app_transactions=transactions, max_commit_retries=100),
            )

    def rows_since(self, version: int, until: int | None = None) -> pa.Table:
        """The rows appended after `version`, up to `until` (default: the handle's version).

        Raises:
            Gone: the change feed no longer reaches back so far.
        """
        until = self.version() if until is None else until
        if version >= until:
            return self.spec.schema.empty_table()
        try:
            reader = self.delta.load_cdf(starting_version=version + 1, ending_version=until)
            changes = pa.table(reader.read_all())
        except Exception as error:  # load_cdf raises a bare Exception for vacuumed files
            raise Gone(str(error)) from error
        schema = self.spec.schema  # cast first: Arrow's kernels do not know the string views that come back
        rows = pa.Table.from_arrays([changes[field.name].cast(field.type) for field in schema], schema=schema)
        return rows.filter(pc.equal(changes["_change_type"].cast(pa.string()), "insert"))

    def select(self, where: ds.Expression | None, columns: list[str] | None = None) -> pa.Table:
        """All rows at the handle's version that match; files whose statistics rule them out are not opened."""
        for attempt in range(5):
            try:
                found = [piece.to_table(columns=columns, filter=where) for piece in self._readable(where)]
                return pa.concat_tables(found) if found else self._empty(columns)
            except FileNotFoundError:  # compacted and vacuumed by another process: read again from a newer version
                if attempt == 4:
                    raise
                self.update()
        raise AssertionError

    def _empty(self, columns: list[str] | None) -> pa.Table:
        table = self.dataset().schema.empty_table()
        return table if columns is None else table.select(columns)

    def batches(self, where: ds.Expression | None = None) -> Iterator[pa.Table]:
        """All rows at the handle's version that match, in bounded pieces."""
        for piece in self._readable(where):
            for batch in piece.to_batches(filter=where, batch_size=131_072):
                yield pa.Table.from_batches([batch])

    def count(self, where: ds.Expression) -> int:
        """How many rows at the handle's version match."""
        return sum(piece.count_rows(filter=where) for piece in self._readable(where))

    def undamaged(self, columns: list[str]) -> Iterator[pa.Table]:
        """The rows of those files at the handle's version that can be read, file by file."""
        for fragment in self.dataset().get_fragments():
            with suppress(OSError, pa.ArrowException):
                yield self.rows_of(fragment).select(columns)

    def rows_of(self, fragment: ds.ParquetFileFragment) -> pa.Table:
        """All rows of one file of `dataset`."""
        whole = self.dataset()
        alone = ds.FileSystemDataset([fragment], whole.schema, whole.format, whole.filesystem)
        return pa.concat_tables([piece.to_table() for piece in self._opened(alone, None)]).cast(self.spec.schema)

    def _readable(self, where: ds.Expression | None) -> Iterator[ds.Dataset]:
        return self._opened(self.dataset(), where)

    def _opened(self, dataset: ds.FileSystemDataset, where: ds.Expression | None) -> Iterator[ds.Dataset]:
        """The files that may hold rows that match, in pieces of bounded size which together are the whole.

        Raises:
            FileNotFoundError: one of an object store's files is gone.
        """
        if self._files.is_local:
            yield dataset
            return
        matching = dataset.get_fragments(where)
        while fragments := list(islice(matching, _FETCHED_AT_ONCE)):
            contents = self._files.fetch([f"{self.spec.name}/{fragment.path}" for fragment in fragments])
            opened = [
                dataset.format.make_fragment(pa.BufferReader(content), partition_expression=fragment.partition_expression)
                for fragment, content in zip(fragments, contents)
            ]
            yield ds.FileSystemDataset(opened, dataset.schema, dataset.format)

    def dataset(self) -> ds.FileSystemDataset:
        """The files of the handle's version, kept open between reads."""
        version = self.version()
        if self._dataset is None:
            root = self.uri if self._files.is_local else f"/{self.spec.name}"  # of an object store it only carries the names
            self._dataset = version, self.delta.to_pyarrow_dataset(filesystem=SubTreeFileSystem(root, LocalFileSystem()))
        seen, known = self._dataset
        if seen != version:
            self._dataset = version, self._moved_on(known)
        return self._dataset[1]

    def _moved_on(self, old: ds.FileSystemDataset) -> ds.FileSystemDataset:
        """The dataset of the handle's version, with what an older one knows of the files that are still there.

        deltalake makes ranges of all columns of all files anew, in Python; here the new files get those that are searched by.
        """
        known = {fragment.path: fragment for fragment in old.get_fragments()}
        files = self.files()
        names = [name for name in self.spec.ranges if f"min.{name}" in files.column_names]
        fragments = []
        for row in files.select(["path", *(f"{end}.{name}" for name in names for end in ("min", "max"))]).to_pylist():
            fragment = known.get(row["path"])
            if fragment is None:
                ranges = [_between(name, row[f"min.{name}"], row[f"max.{name}"]) for name in names]
                within = reduce(and_, ranges, pc.scalar(True))
                fragment = old.format.make_fragment(row["path"], old.filesystem, partition_expression=within)
            fragments.append(fragment)
        return ds.FileSystemDataset(fragments, old.schema, old.format, old.filesystem)

    def files(self) -> pa.Table:
        """The live files with their statistics: path, size_bytes, num_records, min.<column>, max.<column>, …"""
        return pa.table(self.delta.get_add_actions(flatten=True))

    def file_bytes(self) -> int:
        """The size that its files should have, by what it holds."""
        return max(self.spec.file_bytes, int(sum(self.files()["size_bytes"].to_pylist())) // FULL_FILES)

    def is_due(self) -> bool:
        """Whether it is time for a compaction."""
        return self.version() % COMPACT_EVERY == 0

    def compact(self) -> int:
        """Merge small files; returns how many went into larger ones. A lost race is no error: the next time does it."""
        self.update()
        try:
            return int(self.delta.optimize.compact(target_size=self.file_bytes(), writer_properties=_PROPERTIES)["numFilesRemoved"])
        except CommitFailedError:
            return 0

    def clean_log(self) -> None:
        """Remove the entries of the Delta log that are older than its retention and that a checkpoint stands for."""
        with suppress(DeltaError, OSError):  # another process removes the same ones; the next time does the rest
            self.delta.cleanup_metadata()

    def outdated(self, keep_versions: list[int]) -> set[str]:
        """The files that went out of use, but for those that these versions have."""
        return set(self.delta.vacuum(0, dry_run=True, enforce_retention_duration=False, keep_versions=keep_versions))

    def named_since(self, version: int) -> set[str]:
        """The data files that a version, up to the handle's, names. Raises Gone: the log was cleaned in between."""
        return {*self.files()["path"].to_pylist(), *(file for commit in self.commits.after(version) for file in commit.removed)}

    def entries(self) -> Iterator[File]:
        """The files directly in the table's folder."""
        return self._files.files(self.spec.name)

    def folders(self) -> list[str]:
        """The folders in the table's folder, each with a slash behind it."""
        return [f"{name}/" for name in self._files.folders(self.spec.name)]

    def remove(self, names: Iterable[str]) -> None:
        """Delete files and folders of the table's folder; a link itself, never what it leads to."""
        self._files.remove([f"{self.spec.name}/{name}" for name in names])

    def max_of(self, column: str, until: int | None = None) -> int:
        """The greatest value of a number column, from the files' statistics; 0 for an empty table.

        Args:
            until: leave out what was appended after this version, as far as the log reaches back.
        """
        if until is None:
            return self._max_in(self.files(), column)
        if self._greatest_until.get(column, (-2, 0))[0] != until:
            if self.version() < until:
                self.update()
            files = self.files()
            with suppress(Gone):
                # appends alone carry transactions; other commits rewrite rows
                later = [file for commit in self.commits.after(until) if commit.transactions for file in commit.files]
                files = files.filter(pc.invert(pc.is_in(files["path"], pa.array(later, pa.string()))))
            self._greatest_until[column] = until, self._max_in(files, column)
        return self._greatest_until[column][1]

    @staticmethod
    def _max_in(files: pa.Table, column: str) -> int:
        name = f"max.{column}"
        return int(pc.max(files[name]).as_py() or 0) if name in files.column_names and files.num_rows else 0

    def sync_to_disk(self, after: int) -> None:
        """Make the commits after a version durable: delta-rs never fsyncs, and a journal must not go before its rows are down."""
        self._files.make_durable(self.commits.written(after, self.version()), [self.spec.name, self.commits.folder])


def _between(name: str, least: object, greatest: object) -> ds.Expression:
    if least is None or greatest is None:
        return pc.scalar(True)
    return (pc.field(name) >= least) & (pc.field(name) <= greatest)


@contextmanager
def _races(root: str) -> Iterator[None]:
    try:
        yield
    except CommitFailedError as error:
        raise Raced(str(error)) from error
    except BaseException as error:
        if not is_foreign(error):
            raise
        raise explained(error, root) from error
