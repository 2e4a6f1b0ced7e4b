"""One attempt's folder in the target, and the sweeping of those that died.

While an attempt runs, `<target>/_spark_tracking/<token>.json` says so (Delta ignores names that begin with `_`). Its files
are in `<target>/score-<token>/`. Right before it commits it renames the note to `<token>.committing`; who sweeps renames it to
`<token>.swept`. Of the two renames one succeeds, so nobody commits files that were swept, and nobody sweeps what is being committed.
From then on its files are deleted only where the table's log proves that they are not in it; "don't know" keeps them.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from pyarrow.fs import FileInfo, FileSelector, FileType, SubTreeFileSystem

from spark_tracking.delta import files as delta_files
from spark_tracking.errors import InvalidState
from spark_tracking.scoring.commits import scoring_facts
from spark_tracking.scoring.progress import every
from spark_tracking.scoring.worker.files import is_local, root

_NOTES = "_spark_tracking"
_BEAT_SECONDS = 20.0
_DEAD_SECONDS = 900.0  # without a sign of life, where nothing can ask for the process itself
_FORGOTTEN_SECONDS = 7 * 86_400.0  # after which a swept attempt that never came back is not waited for


@dataclass
class Attempt:
    """A running attempt to write into a target that had a version when it began; 0 where it did not exist."""

    target: str
    token: str
    version: int
    committing: bool = field(default=False, init=False)  # from when on its commit may have landed
    _files: SubTreeFileSystem = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._files = root(self.target)

    @property
    def folder(self) -> str:
        """Where the attempt's files go, relative to the target's root."""
        return _folder(self.token)

    def begin(self) -> None:
        """Write the note."""
        self._files.create_dir(_NOTES, recursive=True)
        self._write("json", _process())

    def beat(self) -> None:
        """Give a sign of life, without making a note that somebody swept anew."""
        kind = "committing" if self.committing else "json"
        with suppress(OSError):
            if is_local(self._files):
                os.utime(f"{self._files.base_path}/{_note(self.token, kind)}")
            elif _there(self._files, _note(self.token, kind)):
                self._write(kind, _process())

    def claim(self) -> None:
        """Take the right to commit; from here on nobody sweeps this attempt while its process lives.

        Raises:
            InvalidState: somebody took it for dead and swept its files.
        """
        swept = InvalidState(
            f"This job gave no sign of life for {_DEAD_SECONDS:.0f} s, so another one removed its files from '{self.target}'; nothing was "
            "written. Run it again."
        )
        try:
            self._files.move(_note(self.token, "json"), _note(self.token, "committing"))
        except OSError as error:
            raise swept from error
        if _there(self._files, _note(self.token, "swept")):  # where a rename is a copy, the beat may have written a swept note anew
            raise swept
        self.committing = True

    def drop_all_but(self, committed: Iterable[str]) -> None:
        """Delete the attempt's files except those committed: the rest of task attempts that failed or came second."""
        _drop(self._files, self.token, set(committed))

    def settle(self) -> None:
        """After a failure: delete the files, unless they are in the table or may get there yet; the note then stays for a later sweep."""
        landed = committed(self.target, self.token, self.version) if self.committing else False
        # A request that this process gave up may still be on its way to an object store; to a folder nothing is on its way.
        if landed is None or (self.committing and not landed and not is_local(self._files)):
            self._write("committing", {})  # of no process: its age will tell
            return
        if not landed:
            self.drop_all_but(())
        self.forget()

    def forget(self) -> None:
        """Remove what says that the attempt runs, or was swept."""
        for note in (_note(self.token, kind) for kind in ("json", "committing", "swept")):
            if _there(self._files, note):
                self._files.delete_file(note)

    def _write(self, kind: str, process: dict[str, Any]) -> None:
        with self._files.open_output_stream(_note(self.token, kind)) as stream:
            stream.write(json.dumps({**process, "version": self.version}).encode())


@contextmanager
def attempt(target: str, token: str, version: int) -> Iterator[Attempt]:
    """Note that an attempt runs, and sweep up after dead ones; in failure, delete this one's files if they are certainly not committed.

    Raises:
        InvalidState: the target cannot be written.
    """
    running = Attempt(target, token, version)
    try:
        sweep(target)  # first: what a dead attempt left may be what fills the disk
        running.begin()
    except OSError as error:
        with suppress(OSError):
            running.forget()
        raise InvalidState(f"The target '{target}' cannot be written: {error}") from error
    try:
        with every(_BEAT_SECONDS, running.beat):
            yield running
    except BaseException:
        with suppress(OSError):  # what cannot be cleaned up now goes with the next job; the failure is what to tell
            running.settle()
        raise
    with suppress(OSError):
        running.forget()


def sweep(target: str) -> list[str]:
    """Delete the files of attempts that died without committing, and return their tokens."""
    files, swept = root(target), []
    for info in files.get_file_info(FileSelector(_NOTES, allow_not_found=True)):
        token, kind = os.path.splitext(info.base_name)
        if kind == ".swept" and _age(info) > _FORGOTTEN_SECONDS:
            files.delete_file(info.path)
        if kind not in (".json", ".committing"):
            continue
        note = _read(files, info.path)
        state = _state(note, info)
        if state == "lives":
            continue
        mark = _note(token, "swept")
        try:
            files.move(info.path, mark)  # first: from here on the attempt, if it lives after all, will not commit
        except OSError:  # another one sweeps it, or it lives and commits
            continue
        landed = committed(target, token, int(note.get("version") or 0))
        if landed is False:
            _drop(files, token, set())
            swept.append(token)
        if landed or state == "gone":
            files.delete_file(mark)
    return swept


def committed(target: str, token: str, since: int) -> bool | None:
    """Whether an attempt's commit, which came after version `since`, is in the table; None where the log does not tell."""
    try:
        if not _there(root(target), "_delta_log"):
            return False  # it died before it made the table
        now = delta_files.snapshot(target)
        if any(file.path.startswith(f"{_folder(token)}/") for file in now.files):
            return True
        commits = delta_files.history(target, max(1, now.version - since + 1))
    except Exception:  # whatever keeps this client from the log
        return None
    if any((scoring_facts(commit.get("userMetadata")) or {}).get("token") == token for commit in commits):
        return True
    return False if {commit["version"] for commit in commits} >= set(range(since + 1, now.version + 1)) else None


def _state(note: dict[str, Any], info: FileInfo) -> Literal["lives", "gone", "silent"]:
    """Asked of the process where this one can see it: same boot, same process namespace. Else the signs of life tell."""
    here = _process()
    if here["boot"] and note.get("boot") == here["boot"] and note.get("namespace") == here["namespace"]:
        return "lives" if _birth(str(note.get("pid"))) == note.get("born") else "gone"
    return "silent" if _age(info) > _DEAD_SECONDS else "lives"


def _age(info: FileInfo) -> float:
    return float((dt.datetime.now(dt.timezone.utc) - info.mtime).total_seconds())


def _process() -> dict[str, Any]:
    """This process, and which others can see it: those that look through the same `/proc`."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            namespace = f"{os.readlink('/proc/self/ns/pid')} {os.stat('/proc').st_dev}"
            return {"boot": boot.read().strip(), "namespace": namespace, "pid": os.readlink("/proc/self"), "born": _birth("self")}
    except OSError:  # no Linux
        return {"boot": None}


def _birth(pid: str) -> str | None:
    """When a process started, so that its number used again is not taken for it; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _folder(token: str) -> str:
    return f"score-{token}"


def _note(token: str, kind: str) -> str:
    return f"{_NOTES}/{token}.{kind}"


def _there(files: SubTreeFileSystem, path: str) -> bool:
    return bool(files.get_file_info(path).type != FileType.NotFound)


def _read(files: SubTreeFileSystem, path: str) -> dict[str, Any]:
    """A note; an empty one where it is torn, or was swept at this moment: then its age alone tells."""
    try:
        with files.open_input_stream(path) as stream:
            note = json.loads(stream.read())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) and isinstance(note.get("version"), int) else {}


def _drop(files: SubTreeFileSystem, token: str, keep: set[str]) -> None:
    if not keep and _there(files, _folder(token)):
        files.delete_dir(_folder(token))
    for info in files.get_file_info(FileSelector(_folder(token), allow_not_found=True)):
        if info.path not in keep:
            files.delete_file(info.path)
