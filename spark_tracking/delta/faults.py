"""Errors of the libraries below the lake as sentences of ours, in the one place where they would leave it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from spark_tracking.errors import LakeCorrupt, LakeError, LakeReadOnly, NoSpace, SparkTrackingError
from spark_tracking.masking import masked

_LIBRARIES = {"_internal", "deltalake", "pyarrow", "datafusion", "obstore", "pyo3_runtime", "msgpack", "orjson", "json"}
_FULL, _CLOSED = {28, 122}, {1, 13, 30}
_NUMBER = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)
_STORE = re.compile(r"Generic (S3|MicrosoftAzure|GCS|HTTP|Azure)")
VACUUM = "spark-tracking lake vacuum --keep-hours 0"


def is_foreign(error: BaseException) -> bool:
    """Whether an error comes from below: files, Delta, Parquet, SQL, a panic of Rust (a BaseException), bytes that are no text."""
    if isinstance(error, (SparkTrackingError, KeyboardInterrupt, SystemExit)):
        return False
    library = type(error).__module__.partition(".")[0]
    # DataFusion and `load_cdf` raise a bare Exception
    return isinstance(error, (OSError, UnicodeError)) or type(error) is Exception or library in _LIBRARIES


def explained(error: BaseException, root: str) -> LakeError:
    """What an error of a library means for the lake at `root`."""
    text = masked(str(error))
    reason = first_line(text) or type(error).__name__
    found = _NUMBER.search(text)
    number = getattr(error, "errno", None) or int(next(filter(None, found.groups()))) if found else getattr(error, "errno", None)
    if number in _FULL or "No space left" in text:
        return NoSpace(
            f"No space is left for the lake at '{root}' ({reason}). What was acknowledged is safe in its journal and tables. Free some "
            f"space (outdated files of the lake go with: {VACUUM} {root}) and try again."
        )
    if number in _CLOSED:
        return LakeReadOnly(
            f"The lake at '{root}' cannot be used as asked: {reason}. Give this user read and write permission on the folder, or choose "
            "another lake."
        )
    if _STORE.search(text):
        return LakeError(f"The object store behind '{root}' did not do as asked: {reason}. Check that it can be reached, and try again.")
    return LakeCorrupt(
        f"A file of the lake at '{root}' is missing or damaged: {reason}. Say what is wrong with: spark-tracking lake check {root} "
        f"and mend what can be mended with: spark-tracking lake rebuild {root}"
    )


def first_line(text: str) -> str:
    """What an error says, in a line; behind it Rust's errors have their insides."""
    line = next(iter(masked(text).strip().splitlines()), "").partition(": ParsedLog")[0]
    return line[:300].rstrip(".! ")


@contextmanager
def explaining(root: str) -> Iterator[None]:
    """Raise errors of libraries as ours."""
    try:
        yield
    except BaseException as error:
        if not is_foreign(error):
            raise
        raise explained(error, root) from error


def explained_batches(reader: pa.RecordBatchReader, root: str) -> pa.RecordBatchReader:
    """The same stream, whose errors are ours."""

    def batches() -> Iterator[pa.RecordBatch]:
        with explaining(root):
            yield from reader

    return pa.RecordBatchReader.from_batches(reader.schema, batches())
