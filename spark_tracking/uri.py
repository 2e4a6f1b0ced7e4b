"""Tracking URIs of a lake, parsed into one frozen dataclass."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from spark_tracking.masking import carries_more, masked

if TYPE_CHECKING:
    from spark_tracking.errors import InvalidUri

OBJECT_STORES = ("s3", "abfss", "gs")
SCHEMES = ("delta", "delta+file", "delta+s3", "delta+abfss", "delta+gs")
LONGEST_ID = 250
_FORMS = (
    "delta:///absolute/path, delta:relative/path, delta+s3://bucket/prefix, "
    "delta+abfss://container@account.dfs.core.windows.net/prefix or delta+gs://bucket/prefix"
)


@dataclass(frozen=True)
class LakeUri:
    """Where a lake lies.

    Accepted by `LakeUri.parse`:

    | form | storage |
    |---|---|
    | `delta:///absolute/path`, `delta+file:///absolute/path` | a local or mounted folder |
    | `delta:relative/path` | a folder relative to the working directory at the time of parsing |
    | `delta+s3://bucket/prefix` | Amazon S3 and what speaks its protocol |
    | `delta+abfss://container@account.dfs.core.windows.net/prefix` | Azure Data Lake Storage Gen2 |
    | `delta+gs://bucket/prefix` | Google Cloud Storage |
    | any of these without `delta+`, or a plain path | the same, where a lake is expected anyway (the command line) |

    Credentials never stand in the URI: they come from the environment.

    Attributes:
        storage: `file`, `s3`, `abfss` or `gs`.
        root: the folder as Delta engines take it: an absolute path without a trailing slash, or a cloud URL.

    Example:
        >>> LakeUri.parse("delta:///shared/lake").root
        '/shared/lake'
        >>> str(LakeUri.parse("s3://bucket/lake"))
        'delta+s3://bucket/lake'
    """

    storage: str
    root: str

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> LakeUri:
        """Parse any accepted form.

        Raises:
            InvalidUri: it is none of them, or carries credentials, a query or a fragment.
        """
        text = os.fspath(text)
        scheme = "" if ":" not in text or text.startswith(("/", ".")) else text.split(":", 1)[0].lower()
        if scheme and carries_more(text):
            raise _invalid(
                f"'{masked(text, text)}' carries credentials, a query or a fragment. Take them out of the URI: a lake's credentials come "
                "from the environment (AWS_…, AZURE_…, GOOGLE_…), there from a secret scope."
            )
        if scheme in ("", "delta", "delta+file", "file"):
            return cls._parse_local(text, scheme)
        storage = scheme.removeprefix("delta+")
        if storage not in OBJECT_STORES:
            raise _invalid(f"'{text}' is not a lake's URI. Expected {_FORMS}.")
        parts = urlsplit(text)
        if not parts.netloc or (storage == "abfss" and "@" not in parts.netloc):
            raise _invalid(f"'{text}' names no bucket or container. Expected {_FORMS}.")
        return cls(storage, f"{storage}://{parts.netloc}{parts.path.rstrip('/')}")

    @classmethod
    def _parse_local(cls, text: str, scheme: str) -> LakeUri:
        path = text
        if scheme:
            path = text.split(":", 1)[1]
            if path.startswith("//"):
                host, slash, rest = path[2:].partition("/")
                if host not in ("", "localhost"):
                    raise _invalid(
                        f"'{text}' names a host ('{host}') where a folder was expected. "
                        f"A local folder takes three slashes: {scheme}:///{quote(host)}/{rest}"
                    )
                path = slash + rest
            path = unquote(path)
        if not path or "\x00" in path:
            raise _invalid(f"'{text}' names no folder. Expected {_FORMS}.")
        return cls("file", os.path.abspath(os.path.expanduser(path)))

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder of a file system (and not an object store)."""
        return self.storage == "file"

    @property
    def path(self) -> Path:
        """The root as a path; only for local roots."""
        if not self.is_local:
            raise _invalid(f"'{self}' is not a local folder.")
        return Path(self.root)

    @property
    def artifact_root(self) -> str:
        """Where artifacts go by default: below the root, with a scheme that MLflow has an artifact repository for."""
        return f"{self.file_url if self.is_local else self.root}/artifacts"

    @property
    def file_url(self) -> str:
        """The root as a `file://` URL; only for local roots."""
        return "file://" + quote(str(self.path))

    def __str__(self) -> str:
        """The tracking URI."""
        return f"delta://{quote(self.root)}" if self.is_local else f"delta+{self.root}"


def is_plain_id(id: object) -> bool:
    """Whether a text can be the id of a run, model or experiment: it becomes the name of a folder, so that it must be no more than that."""
    if not isinstance(id, str) or not 0 < len(id) <= LONGEST_ID or ".." in id or id == ".":
        return False
    return id.isprintable() and not any(character in id for character in "/\\%")


def is_lake_uri(text: str) -> bool:
    """Whether MLflow would hand this tracking URI to our store."""
    return text.split(":", 1)[0].lower() in SCHEMES and ":" in text


def absolute(uri: str) -> str:
    """A tracking URI for a process with another working directory; one that does not parse stays as it is."""
    if is_lake_uri(uri):
        return str(LakeUri.parse(uri))
    head, slashes, path = uri.partition(":///")
    if head == "sqlite" and slashes and path and not path.startswith("/"):
        return f"sqlite:///{os.path.abspath(path)}"
    return uri


def _invalid(message: str) -> InvalidUri:
    from spark_tracking.errors import InvalidUri  # only here: importing MLflow costs more than a cluster's start may take

    return InvalidUri(message)
