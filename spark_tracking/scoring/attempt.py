"""One attempt's folder in the target, and the sweeping of those that died.

While an attempt runs, `<target>/_spark_tracking/<token>.json` says so (Delta ignores names that begin with `_`). Its files
are in `<target>/score-<token>/`. Whoever comes next finds the notes of dead attempts, and deletes the files of those that
never committed. An attempt looks for its own note right before it commits, so that nobody commits files that were swept.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyarrow.fs import FileSelector, FileSystem, FileType

from spark_tracking.errors import InvalidState
from spark_tracking.lake import delta_files
from spark_tracking.scoring.commits import scoring_facts
from spark_tracking.scoring.file_worker import root

_NOTES = "_spark_tracking"
_BEAT_SECONDS = 20.0
_DEAD_SECONDS = 900.0  # without a sign of life, on another machine


@dataclass(frozen=True)
class Attempt:
    """A running attempt.

    Attributes:
        target: the target's root, as Spark names it.
        token: the attempt's name.
    """

    target: str
    token: str

    @property
    def folder(self) -> str:
        """Where the attempt's files go, relative to the root."""
        return f"score-{self.token}"

    def check_alive(self) -> None:
        """Raise if somebody took this attempt for dead and swept its files."""
        files, base = root(self.target)
        if files.get_file_info(_note(base, self.token)).type == FileType.NotFound:
            raise InvalidState(f"This job gave no sign of life for {_DEAD_SECONDS:.0f} s, so another one removed its files. Run it again.")

    def drop_all_but(self, committed: Iterable[str]) -> None:
        """Delete the attempt's files except those committed: the rest of task attempts that failed or came second."""
        _drop(*root(self.target), self.folder, frozenset(committed))


@contextmanager
def attempt(target: str, token: str, version: int) -> Iterator[Attempt]:
    """Note that an attempt runs, and sweep up after dead ones; at the end, in failure, delete this one's files.

    Args:
        target: the target's root.
        token: the attempt's name.
        version: the target's version now; 0 where it does not exist yet.
    """
    files, base = root(target)
    sweep(target)
    try:
        files.create_dir(f"{base}/{_NOTES}", recursive=True)
    except OSError as error:
        raise InvalidState(f"The target '{target}' cannot be written: {error}") from error
    stop = threading.Event()
    note = {"host": socket.gethostname(), "pid": os.getpid(), "born": _birth(os.getpid()), "version": version}

    def beat() -> None:
        while not stop.wait(_BEAT_SECONDS):
            if files.get_file_info(_note(base, token)).type != FileType.NotFound:
                _write(files, _note(base, token), note)

    _write(files, _note(base, token), note)
    thread = threading.Thread(target=beat, name=f"score-{token}", daemon=True)
    thread.start()
    running = Attempt(target, token)
    try:
        yield running
    except BaseException:
        running.drop_all_but(())
        raise
    finally:
        stop.set()
        thread.join()
        if files.get_file_info(_note(base, token)).type != FileType.NotFound:
            files.delete_file(_note(base, token))


def sweep(target: str) -> list[str]:
    """Delete the files of attempts that died without committing.

    Returns:
        Their tokens.
    """
    files, base = root(target)
    swept = []
    for info in files.get_file_info(FileSelector(f"{base}/{_NOTES}", allow_not_found=True)):
        if info.extension != "json":
            continue
        with files.open_input_stream(info.path) as stream:
            text = stream.read()
        token = info.base_name.removesuffix(".json")
        note: dict[str, Any] = json.loads(text) if text else {"host": "", "pid": 0, "born": None, "version": 0}
        if not _is_dead(note, info.mtime):
            continue
        files.delete_file(info.path)  # first: from here on the attempt, if it lives after all, will not commit
        if not _committed(target, token, note["version"]):
            _drop(files, base, f"score-{token}", frozenset())
            swept.append(token)
    return swept


def _committed(target: str, token: str, since: int) -> bool:
    files, base = root(target)
    if files.get_file_info(f"{base}/_delta_log").type == FileType.NotFound:
        return False  # it died before it made the table; a log that only cannot be read now is an error below
    newest = delta_files.history(target, 1)[0]["version"]
    commits = delta_files.history(target, max(1, newest - since + 1))
    return any((scoring_facts(commit.get("userMetadata")) or {}).get("token") == token for commit in commits)


def _is_dead(note: dict[str, Any], seen: dt.datetime) -> bool:
    if note["host"] == socket.gethostname():
        return _birth(note["pid"]) is None or _birth(note["pid"]) != note["born"]
    return (dt.datetime.now(dt.timezone.utc) - seen).total_seconds() > _DEAD_SECONDS


def _birth(pid: int) -> str | None:
    """When a process of this machine started, so that its number used again is not taken for it; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "alive"
    return None if os.path.isdir("/proc/self") else "alive"


def _note(base: str, token: str) -> str:
    return f"{base}/{_NOTES}/{token}.json"


def _write(files: FileSystem, path: str, note: dict[str, Any]) -> None:
    with files.open_output_stream(path) as stream:
        stream.write(json.dumps(note).encode())


def _drop(files: FileSystem, base: str, folder: str, keep: frozenset[str]) -> None:
    if not keep:
        if files.get_file_info(f"{base}/{folder}").type == FileType.Directory:
            files.delete_dir(f"{base}/{folder}")
        return
    for info in files.get_file_info(FileSelector(f"{base}/{folder}", allow_not_found=True)):
        if f"{folder}/{info.base_name}" not in keep:
            files.delete_file(info.path)
