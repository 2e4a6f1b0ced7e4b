"""The `_delta_log` of a table as files of its folder: what each version says, what of it is damaged, and how it goes on in spite of that.

Format: the Delta transaction protocol, https://github.com/delta-io/delta/blob/master/PROTOCOL.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from posixpath import basename
from typing import Any
from urllib.parse import unquote

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from spark_tracking.delta.faults import first_line
from spark_tracking.delta.storage import Storage

_FEW_COMMITS = 100
"""Commits whose files are looked for by name; a longer way back begins with what the folder still has."""


class Gone(Exception):
    """Rows or commits of that range can't be had any more (cleaned logs, vacuumed files)."""


@dataclass(frozen=True)
class Commit:
    """What one version of a table says about itself. Files are relative to the table.

    Attributes:
        transactions: application transactions set by it.
        files, removed: data files that it added, and took out of use.
        added_rows: those that brought new rows; a compaction's are not among them.
        removes_rows: whether rows were deleted or rewritten.
    """

    version: int
    transactions: dict[str, int]
    files: list[str]
    added_rows: list[str]
    removed: list[str] = field(default_factory=list)
    removes_rows: bool = False

    @classmethod
    def parse(cls, version: int, text: bytes) -> Commit:
        """A commit as its file has it."""
        actions = [orjson.loads(line) for line in text.splitlines() if line.strip()]
        added = [action["add"] for action in actions if "add" in action]
        removed = [action["remove"] for action in actions if "remove" in action]
        return cls(
            version,
            {action["txn"]["appId"]: action["txn"]["version"] for action in actions if "txn" in action},
            [unquote(add["path"]) for add in added],
            [unquote(add["path"]) for add in added if add.get("dataChange", True)],
            [unquote(remove["path"]) for remove in removed],
            any(remove.get("dataChange") for remove in removed),
        )


@dataclass(frozen=True)
class Faults:
    """What is wrong with a log.

    Attributes:
        versions: by version, what is wrong with its commit; versions before the checkpoint that stands for them left out.
        checkpoints: names of checkpoint files that cannot be read, with the reason.
        newest: the newest version; -1 where nothing is left.
    """

    versions: dict[int, str]
    checkpoints: dict[str, str]
    newest: int


class CommitLog:
    """The log of the table in a folder of a root."""

    def __init__(self, files: Storage, table: str) -> None:
        self._files = files
        self._table = table
        self.folder = f"{table}/_delta_log"

    def has_news(self, version: int) -> bool:
        """Whether a version after `version` exists. Costs two looks at the file system or one request, and no Delta call.

        A log is cleaned from its old end and never of its newest version: where `version` itself is gone, later ones exist.
        """
        return not self._files.is_newest(self.folder, version)

    def after(self, version: int) -> Iterator[Commit]:
        """The commits after a version, in order. Raises Gone: the log was cleaned in between."""
        while True:
            version += 1
            try:
                text = self._files.read(self._path(version))
            except FileNotFoundError:
                if not self._files.exists(self._path(version - 1)):
                    raise Gone(f"version {version} of '{self._table}' was cleaned away") from None
                return
            yield Commit.parse(version, text)

    def since(self, when: float) -> list[int]:
        """The versions committed after a time (seconds since the epoch)."""
        return sorted(_version(file.name) for file in self._files.files(self.folder) if _is_commit(file.name) and file.modified >= when)

    def written(self, after: int, newest: int) -> Iterator[str]:
        """All files of the commits after a version, below the root."""
        few = newest - after <= _FEW_COMMITS
        for version in range(after + 1, newest + 1) if few else filter(after.__lt__, self.since(0)):
            with suppress(FileNotFoundError):  # cleaned away meanwhile: a checkpoint holds it
                text = self._files.read(self._path(version))
                yield from (f"{self._table}/{file}" for file in Commit.parse(version, text).files)
                yield self._path(version)

    def named(self) -> set[str]:
        """The data files that commits and checkpoints name, live or removed."""
        named: set[str] = set()
        for file in list(self._files.files(self.folder)):
            try:
                text = self._files.read(f"{self.folder}/{file.name}")
                if _is_commit(file.name):
                    commit = Commit.parse(0, text)
                    named.update(map(basename, commit.files + commit.removed))
                elif _is_checkpoint(file.name):
                    stored = pq.read_table(pa.BufferReader(text), columns=["add", "remove"])
                    rows = [row for kind in ("add", "remove") for row in stored[kind].to_pylist()]
                    named |= {basename(row["path"]) for row in rows if row and row.get("path")}
            except (FileNotFoundError, ValueError, TypeError, LookupError, pa.ArrowException, OSError):
                continue  # cleaned away, or damaged, which `faults` tells
        return named

    def faults(self) -> Faults:
        """Look at all of it, file by file."""
        names = self._names()
        versions = {_version(name) for name in names if _is_commit(name)}
        bad, start = {}, -1
        for name in filter(_is_checkpoint, names):
            try:
                pq.read_table(pa.BufferReader(self._files.read(f"{self.folder}/{name}")))
                start = max(start, _version(name))
            except Exception as error:  # Thrift's and Arrow's have no common class
                bad[name] = first_line(str(error))
        newest = max(versions, default=start)
        found = {version: "is missing" for version in range(start + 1, newest) if version not in versions}
        for version in sorted(v for v in versions if v > start):
            with suppress(FileNotFoundError):  # cleaned away meanwhile: a newer checkpoint stands for it
                if told := _fault(self._files.read(self._path(version))):
                    found[version] = told
        return Faults(found, bad, newest)

    def mend(self, newest: int, first: Callable[[], bytes], distrust: int, aside: list[str]) -> None:
        """Have the versions in sequence, up to `newest` at least, with an empty commit in place of a lost one.

        Args:
            first: the first commit of such a table.
            distrust: 0: what is damaged; 1: all checkpoints, too; 2: everything.
            aside: gets what was set aside.
        """
        for name in [*filter(_is_checkpoint, self._names())] if distrust else self.faults().checkpoints:
            aside.append(self._files.set_aside(f"{self.folder}/{name}"))
        found = self.faults()
        versions = sorted({*found.versions, *range(0 if distrust > 1 else found.newest + 1, max(found.newest, newest) + 1)})
        if versions and self._files.exists(f"{self.folder}/_last_checkpoint"):
            self._files.set_aside(f"{self.folder}/_last_checkpoint")  # a mere hint, which may point to what is gone
        for version in versions:
            path = self._path(version)
            text = self._files.read(path) if self._files.exists(path) else b""
            if text:
                aside.append(self._files.set_aside(path))
            self._files.note(path, _filler(text if version in found.versions else b"", first if version == 0 else None))

    def _names(self) -> list[str]:
        try:
            return sorted(file.name for file in self._files.files(self.folder))
        except OSError:
            return []

    def _path(self, version: int) -> str:
        return f"{self.folder}/{version:020d}.json"


def _version(name: str) -> int:
    return int(name[:20])


def _is_commit(name: str) -> bool:
    return name.endswith(".json") and name[:20].isdigit() and len(name) == 25


def _is_checkpoint(name: str) -> bool:
    return ".checkpoint" in name and name.endswith(".parquet") and name[:20].isdigit()


def _fault(text: bytes) -> str:
    """What is wrong with a commit; '' for nothing."""
    lines = text.splitlines()
    try:
        actions = [orjson.loads(line) for line in lines]
    except orjson.JSONDecodeError:
        return "is damaged: it is not JSON"
    if not lines or not all(isinstance(action, dict) for action in actions):
        return "is empty" if not lines else "is damaged: it is no list of actions"
    information: dict[str, Any] = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
    metrics = information.get("operationMetrics") or {}
    told, added = metrics.get("num_added_files"), sum("add" in action for action in actions)
    appends = (information.get("operationParameters") or {}).get("mode") == "Append"  # delta-rs miscounts an overwrite by nothing
    if appends and metrics.get("num_added_rows") and told is not None and int(told) != added:
        return f"is damaged: it adds {added} files, and says {told}"
    return ""


def _filler(text: bytes, first: Callable[[], bytes] | None) -> bytes:
    """A commit in place of a damaged one: what of it can be read, else nothing but its number."""
    now = int(time.time() * 1000)
    actions: list[Any] = [{"commitInfo": {"timestamp": now, "operation": "REPAIR", "engineInfo": "spark-tracking lake rebuild"}}]
    for line in text.splitlines():
        with suppress(orjson.JSONDecodeError):
            action = orjson.loads(line)
            actions += [action] if isinstance(action, dict) and "commitInfo" not in action else []
    if first is not None and not any("metaData" in action for action in actions):
        actions = [action for line in first().splitlines() if "commitInfo" not in (action := orjson.loads(line))] + actions
    return b"\n".join(map(orjson.dumps, actions)) + b"\n"
