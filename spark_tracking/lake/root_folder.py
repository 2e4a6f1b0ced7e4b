"""The root folder of a lake: is it one, of which format, may it be one; and making it.

`lake.json` is written last, so a root that has it is whole; a half-made one is simply made again.
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import orjson

from spark_tracking.address import LakeUri
from spark_tracking.delta import storage
from spark_tracking.delta.folder import SET_ASIDE
from spark_tracking.delta.table import Table, TableSpec
from spark_tracking.errors import InvalidUri, LakeFormatError, LakeReadOnly
from spark_tracking.lake.maintain import is_stray
from spark_tracking.lake.tables import BY_NAME, FORMAT_VERSION

MARKER = "lake.json"
_OURS = {*BY_NAME, "_journal", "artifacts", MARKER, "flush.lease", "lost+found", SET_ASIDE}
_UNNAMEABLE = re.compile(r"%[0-9A-Fa-f]{2}|[\\\[\]^|\x00-\x1f\x7f]")
"""What delta-rs decodes once more, takes for a slash, or fails on half-way."""
_CLOUD_MOUNTS = ("s3fs", "rclone", "goofys", "geesefs", "blobfuse", "gcsfuse", "mountpoint-s3", "dbfs", "fuse.mount-s3")


def ensure(uri: LakeUri, create: bool) -> bool:
    """Check that there is a lake that we can use; with `create`, make it where there is none. Returns whether this call made it.

    Raises:
        InvalidUri: a kind of storage on which a lake would lose data, or a path that Delta's library cannot name.
        LakeFormatError: no lake, or one of a newer format, or a folder full of something else.
        LakeReadOnly: it had to be created and cannot be.
    """
    if uri.is_local:
        _refuse_unnameable(uri.root)
        refuse_cloud_mount(uri.path)
    files, made = storage.of(uri.root), False
    if not files.exists(MARKER):
        if not create:
            raise LakeFormatError(f"There is no lake at '{uri.root}'. Make one with: spark-tracking lake init {uri.root}")
        made = _create(files)
    check_format(uri.root, files.read(MARKER))
    return made


def _refuse_unnameable(path: str) -> None:
    found = _UNNAMEABLE.search(path)
    if found:
        raise InvalidUri(
            f"A lake cannot lie at {path!r}: Delta's library cannot handle {found.group()!r} in a path, and would fail half-way "
            "or write to another folder. Choose a path without it."
        )


def check_format(root: str, text: bytes) -> None:
    """Refuse what a newer version of this package wrote."""
    try:
        version = int(orjson.loads(text)["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise LakeFormatError(f"'{root}/{MARKER}' is not a lake's description: {error}.") from error
    if version > FORMAT_VERSION:
        raise LakeFormatError(
            f"The lake at '{root}' has format {version}; this version of spark-tracking knows formats up to "
            f"{FORMAT_VERSION}. Upgrade: pip install --upgrade spark-tracking"
        )


def refuse_cloud_mount(path: Path, mounts: str | None = None) -> None:
    """Refuse FUSE mounts of object stores: no append, no hard links, no atomic create. Data would be lost in silence.

    Args:
        mounts: in the form of /proc/mounts, which it is by default (proc(5)).

    Raises:
        InvalidUri: `path` lies on one.
    """
    advice = {
        "Volumes": "the volume's cloud URI (delta+abfss://…, delta+s3://…; see DESCRIBE VOLUME)",
        "dbfs": "the cloud URI behind the mount (delta+abfss://…, delta+s3://…; see dbutils.fs.mounts())",
    }
    top = path.parts[1] if len(path.parts) > 1 else ""
    if top in advice:
        raise InvalidUri(
            f"'{path}' is a mount of an object store, on which a lake cannot be kept safely. Use {advice[top]}, "
            "or put an `mlflow server` in front of the lake and track to that."
        )
    kind = _mount_kind(path, _proc_mounts() if mounts is None else mounts)
    if any(name in kind for name in _CLOUD_MOUNTS):
        raise InvalidUri(
            f"'{path}' lies on a '{kind}' mount of an object store, on which a lake cannot be kept safely. "
            "Use the store's own URI (delta+s3://…, delta+abfss://…, delta+gs://…)."
        )


def _mount_kind(path: Path, mounts: str) -> str:
    """The file system type of the mount that holds `path`, with its source for FUSE."""
    best, kind = "", ""
    for line in mounts.splitlines():
        source, mount, fstype = line.split()[:3]
        mount = mount.replace("\\040", " ")
        if (str(path) + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best):
            best, kind = mount, f"{fstype} {source}" if fstype.startswith("fuse") else fstype
    return kind


def _proc_mounts() -> str:
    try:
        return Path("/proc/mounts").read_text()
    except OSError:
        return ""  # not Linux


def _create(files: storage.Storage) -> bool:
    root = files.root
    try:
        there = sorted(files.names())
        foreign = [name for name in there if name not in _OURS and not name.startswith(".")]
        foreign += [entry for name in there if name in BY_NAME for entry in _in_the_way(files, BY_NAME[name])]
        if foreign:
            raise LakeFormatError(
                f"'{root}' holds other files ({', '.join(foreign[:3])}{', …' if len(foreign) > 3 else ''}) and no lake. "
                "Name an empty or new folder."
            )
        files.prepare(["_journal", "artifacts"])
        for spec in BY_NAME.values():
            Table.create(root, spec)
        text = orjson.dumps({"format": FORMAT_VERSION, "id": uuid.uuid4().hex}, option=orjson.OPT_APPEND_NEWLINE)
        return files.create(MARKER, text)  # another process may have been first, with the same lake
    except OSError as error:
        raise LakeReadOnly(
            f"No lake can be made at '{root}': {error.strerror or error}. Choose a folder that this user can write."
        ) from error


def _in_the_way(files: storage.Storage, spec: TableSpec) -> list[str]:
    """What is not ours where a table would lie; what a killed creation of a lake left is."""
    folder = spec.name
    try:
        entries = [*(file.name for file in files.files(folder)), *(f"{name}/" for name in files.folders(folder))]
    except NotADirectoryError:
        return [folder]
    if "_delta_log/" not in entries:
        return [f"{folder}/{name}" for name in entries]
    columns = Table.columns(files.root, spec)  # None: its creation has only begun
    if columns is not None and not columns.issuperset(spec.schema.names):
        return [f"{folder}/, a Delta table with other columns"]
    return [f"{folder}/{name}" for name in entries if is_stray(name)]
