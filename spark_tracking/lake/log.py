"""A Delta table of the lake as a process follows it: version by version, with its application transactions.

A segment's position in a log, and a log's version in a derived table, are Delta application transactions that stand in the
very commit that wrote the rows, so each row gets in exactly once, whoever writes, however often it is killed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import reduce
from operator import and_
from urllib.parse import unquote

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError

from spark_tracking.lake import dataset, storage
from spark_tracking.lake.faults import explained, is_foreign
from spark_tracking.lake.tables import TableSpec

WRITER_PROPERTIES = WriterProperties(compression="ZSTD", compression_level=3)
HOOKS = PostCommitHookProperties(cleanup_expired_logs=False)
"""A look at the whole log after each commit costs more than the commit; see `maintain.clean_log`."""
NAMES = "names"
"""The application transaction that all commits which take or free a unique name contend for."""
_SEARCHED = ("id", "run_id", "hlc")
"""Columns of the logs by whose ranges files are left out; they have no nulls. In a derived table it is the key."""
_FEW_COMMITS = 100
"""Commits whose files are looked for by name; a longer way back begins with what the folder still has."""


class Raced(Exception):
    """Another process committed first; read again, decide again."""


class Gone(Exception):
    """Rows of that range can't be had from the change feed any more (cleaned logs, vacuumed files)."""


@dataclass(frozen=True)
class Commit:
    """What one version of a table says about itself.

    Attributes:
        transactions: application transactions set by it.
        files: data files it added, relative to the table.
        adds_rows: whether rows were added (not merely rewritten by a compaction).
        removed: data files it took out of use.
    """

    version: int
    transactions: dict[str, int]
    files: list[str]
    adds_rows: bool
    removed: list[str] = field(default_factory=list)


class Table:
    """One Delta table of a lake.

    Attributes:
        seen: the newest version whose commit this process has looked at.
    """

    def __init__(self, root: str, spec: TableSpec) -> None:
        self.spec = spec
        self.uri = f"{root}/{spec.name}"
        self._files = storage.of(root)
        self._log = f"{spec.name}/_delta_log"
        self.delta = DeltaTable(self.uri)
        self.seen = self.delta.version()
        self._dataset: tuple[int, ds.FileSystemDataset] | None = None
        self._transactions: dict[str, int | None] = {}
        self._transactions_at = self.seen

    @staticmethod
    def create(root: str, spec: TableSpec) -> None:
        """Make the table; one that is there stays as it is."""
        try:
            DeltaTable.create(f"{root}/{spec.name}", schema=spec.schema, mode="ignore", configuration=dict(spec.properties))
        except CommitFailedError:
            DeltaTable(f"{root}/{spec.name}")  # another process has just made it, else this says why not

    def version(self) -> int:
        """The version of the handle."""
        return int(self.delta.version())

    def update(self) -> int:
        """Bring the handle to the newest version; returns it."""
        if self._files.patience or self.has_news(self.version()):  # where a look is cheap, it spares Delta's listing of the log
            self.delta.update_incremental()
        return self.version()

    def reopen(self) -> None:
        """A new handle, on the newest version, that knows nothing of before."""
        self.delta = DeltaTable(self.uri)
        self._dataset, self._transactions, self._transactions_at = None, {}, self.version()

    def has_news(self, version: int) -> bool:
        """Whether a version after `version` exists. Costs two looks at the file system or one request, and no Delta call.

        A log is cleaned from its old end and never of its newest version: where `version` itself is gone, later ones exist.
        """
        return not self._files.is_newest(self._log, version)

    def commits(self, after: int) -> Iterator[Commit]:
        """The commits after a version, in order.

        Raises:
            Gone: the log was cleaned in between.
        """
        version = after + 1
        while True:
            try:
                text = self._files.read(self._commit_path(version))
            except FileNotFoundError:
                if not self._files.exists(self._commit_path(version - 1)):
                    raise Gone(f"version {version} of '{self.spec.name}' was cleaned away") from None
                return
            yield _parse_commit(version, text)
            version += 1

    def versions_since(self, when: float) -> list[int]:
        """The versions committed after a time (seconds since the epoch)."""
        found = []
        for file in self._files.files(self._log):
            stem, _, suffix = file.name.partition(".")
            if suffix == "json" and stem.isdigit() and file.modified >= when:
                found.append(int(stem))
        return sorted(found)

    def _commit_path(self, version: int) -> str:
        return f"{self._log}/{version:020d}.json"

    def transaction(self, name: str) -> int | None:
        """The value of an application transaction at the handle's version.

        Delta looks for it in all commits since the last checkpoint, so that is asked once a name, and then each new commit is.
        """
        version = self.version()
        try:
            for commit in self.commits(self._transactions_at) if version > self._transactions_at else ():
                if commit.version > version:
                    break
                self._transactions.update(commit.transactions)
        except Gone:
            self._transactions.clear()
        self._transactions_at = version
        if name not in self._transactions:
            self._transactions[name] = self.delta.transaction_version(name)
        return self._transactions[name]

    def append(self, rows: pa.Table, transactions: Sequence[Transaction]) -> None:
        """Append rows in one commit with its transactions.

        Raises:
            Raced: somebody else's commit conflicts; nothing was written.
        """
        with _races(self._files.root):
            write_deltalake(
                self.delta,
                rows,
                mode="append",
                writer_properties=WRITER_PROPERTIES,
                post_commithook_properties=HOOKS,
                commit_properties=CommitProperties(app_transactions=list(transactions), max_commit_retries=100),
            )

    def rewrite(self, rows: pa.Table, predicate: str | None, transactions: Sequence[Transaction], file_size: int) -> None:
        """Replace the rows that match `predicate` ("": all rows; None: no row) by `rows`, in one commit.

        Raises:
            Raced: somebody else's commit conflicts; nothing was written.
        """
        with _races(self._files.root):
            write_deltalake(  # type: ignore[call-overload]  # the overloads know no computed mode
                self.delta,
                rows,
                mode="append" if predicate is None else "overwrite",
                predicate=predicate or None,
                target_file_size=file_size,
                writer_properties=WRITER_PROPERTIES,
                post_commithook_properties=HOOKS,
                commit_properties=CommitProperties(app_transactions=list(transactions), max_commit_retries=100),
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

    def _appended_after(self, version: int) -> list[str]:
        """The files that appends after a version added; other commits rewrite rows, and carry no transaction."""
        return [file for commit in self.commits(version) if commit.transactions for file in commit.files]

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
        pieces = dataset.readable(alone, self._files, self.spec.name, None)
        return pa.concat_tables([piece.to_table() for piece in pieces]).cast(self.spec.schema)

    def _readable(self, where: ds.Expression | None) -> Iterator[ds.Dataset]:
        return dataset.readable(self.dataset(), self._files, self.spec.name, where)

    def dataset(self) -> ds.FileSystemDataset:
        """The files of the handle's version, kept open between reads."""
        version = self.version()
        if self._dataset is None:
            self._dataset = version, dataset.of(self.delta, self._files, self.spec.name)
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
        names = [name for name in ([self.spec.key] if self.spec.kind else _SEARCHED) if f"min.{name}" in files.column_names]
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

    def named_since(self, version: int) -> set[str]:
        """The data files that a version, up to the handle's, names.

        Raises:
            Gone: the log was cleaned in between.
        """
        return {*self.files()["path"].to_pylist(), *(file for commit in self.commits(version) for file in commit.removed)}

    def entries(self) -> Iterator[storage.File]:
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
            until: leave out what was appended after this version.
        """
        files, name = self.files(), f"max.{column}"
        if until is not None:
            later = pa.array(self._appended_after(until), pa.string())
            files = files.filter(pc.invert(pc.is_in(files["path"], later)))
        if name not in files.column_names or files.num_rows == 0:
            return 0
        return int(pc.max(files[name]).as_py() or 0)

    def sync_to_disk(self, after: int) -> None:
        """Make the commits after a version durable: delta-rs never fsyncs, and a journal must not go before its rows are down."""
        self._files.make_durable(self._written(after), [self.spec.name, self._log])

    def _written(self, after: int) -> Iterator[str]:
        """The files of the commits after a version."""
        newest = self.version()
        few = newest - after <= _FEW_COMMITS
        for version in range(after + 1, newest + 1) if few else filter(after.__lt__, self.versions_since(0)):
            try:
                text = self._files.read(self._commit_path(version))
            except FileNotFoundError:
                continue  # cleaned away meanwhile: a checkpoint holds it
            yield from (f"{self.spec.name}/{file}" for file in _parse_commit(version, text).files)
            yield self._commit_path(version)


def _between(name: str, least: object, greatest: object) -> ds.Expression:
    if least is None or greatest is None:
        return pc.scalar(True)
    return (pc.field(name) >= least) & (pc.field(name) <= greatest)


def transaction(name: str, version: int, retired: bool = False) -> Transaction:
    """An application transaction; a retired one goes with the next checkpoint, a live one never expires."""
    return Transaction(name, version, 1) if retired else Transaction(name, version)


def quoted(texts: Iterable[str]) -> str:
    """Texts as literals of a predicate's IN list."""
    return ", ".join("'" + text.replace("'", "''") + "'" for text in texts)


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


def _parse_commit(version: int, text: bytes) -> Commit:
    transactions: dict[str, int] = {}
    files: list[str] = []
    removed: list[str] = []
    adds_rows = False
    for line in text.splitlines():
        action = orjson.loads(line)
        if "txn" in action:
            transactions[action["txn"]["appId"]] = action["txn"]["version"]
        elif "add" in action:
            files.append(unquote(action["add"]["path"]))
            adds_rows = adds_rows or action["add"].get("dataChange", True)
        elif "remove" in action:
            removed.append(unquote(action["remove"]["path"]))
    return Commit(version, transactions, files, adds_rows, removed)
