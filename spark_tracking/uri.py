"""Tracking URIs of a lake, parsed into one frozen dataclass."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from spark_tracking.errors import InvalidUri

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
        scheme = text.split(":", 1)[0].lower() if ":" in text else ""
        if scheme in ("", "delta", "delta+file", "file") or text.startswith(("/", ".")):
            return cls._parse_local(text, scheme)
        storage = scheme.removeprefix("delta+")
        if storage not in ("s3", "abfss", "gs"):
            raise _invalid(f"'{redact(text)}' is not a lake's URI. Expected {_FORMS}.")
        parts = urlsplit(text)
        if parts.query or parts.fragment or parts.password or (parts.username and storage != "abfss"):
            raise _invalid(
                f"'{redact(text)}' carries credentials, a query or a fragment. "
                "Credentials come from the environment (see the README); remove them from the URI."
            )
        if not parts.netloc or (storage == "abfss" and "@" not in parts.netloc):
            raise _invalid(f"'{redact(text)}' names no bucket or container. Expected {_FORMS}.")
        return cls(storage, f"{storage}://{parts.netloc}{parts.path.rstrip('/')}")

    @classmethod
    def _parse_local(cls, text: str, scheme: str) -> LakeUri:
        path = text
        if scheme and not text.startswith(("/", ".")):
            path = text.split(":", 1)[1]
            if path.startswith("//"):
                host, slash, rest = path[2:].partition("/")
                if host not in ("", "localhost"):
                    raise _invalid(
                        f"'{redact(text)}' names a host ('{redact(host)}') where a folder was expected. "
                        f"A local folder takes three slashes: {scheme}:///{quote(redact(host))}/{rest}"
                    )
                path = slash + rest
            if "?" in path or "#" in path:
                raise _invalid(f"'{redact(text)}' carries a query or fragment, which a lake's URI does not take.")
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


def _invalid(message: str) -> InvalidUri:
    from spark_tracking.errors import InvalidUri  # only here: importing MLflow costs more than a cluster's start may take

    return InvalidUri(message)


def redact(text: str) -> str:
    """`text` without what may be a secret: user:password@ and the query."""
    head, at, tail = text.rpartition("@")
    if at and ":" in head.split("//", 1)[-1]:
        text = head.split("//", 1)[0] + "//***@" + tail
    return text.split("?", 1)[0]


def without_queries(text: str) -> str:
    """`text` with the query of every URL in it cut off: an object store's error may quote a signed one."""
    return re.sub(r"(\w://[^\s?'\"]*)\?[^\s'\"]*", r"\1?…", text)
