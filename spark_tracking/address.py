"""What a tracking URI means: the kind of server, what may be shown of it, what identifies it; and where a lake lies."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from spark_tracking.masking import carries_more, masked, without_secrets

if TYPE_CHECKING:
    from spark_tracking.errors import InvalidUri

OBJECT_STORES = ("s3", "abfss", "gs")
LONGEST_ID = 250
_DATABASES = ("sqlite", "postgresql", "postgres", "mysql")
_KINDS = {
    **dict.fromkeys(("delta", "delta+file", "delta+s3", "delta+abfss", "delta+gs"), "lake"),
    **dict.fromkeys(OBJECT_STORES, "store"),
    **dict.fromkeys(("", "file"), "folder"),
    **dict.fromkeys(("http", "https"), "server"),
    **dict.fromkeys(("databricks", "databricks-uc", "uc"), "databricks"),
    "azureml": "azureml",
}
_FORMS = (
    "delta:///absolute/path, delta:relative/path, delta+s3://bucket/prefix, "
    "delta+abfss://container@account.dfs.core.windows.net/prefix or delta+gs://bucket/prefix"
)


@dataclass(frozen=True)
class Address:
    """A tracking URI, told apart by its form alone; nobody is asked what is there.

    | kind | URI |
    |---|---|
    | `lake` | `delta:…`, `delta+s3://…` and the like: MLflow hands it to our store |
    | `store`, `folder` | `s3://…`, `abfss://…`, `gs://…`; `file:…` or a path: tables, `mlruns` or a lake by its folder |
    | `database` | `sqlite:`, `postgresql:`, `mysql:`, with or without `+driver` |
    | `server`, `databricks`, `azureml` | `http(s)://…`; `databricks`, `databricks://profile`; `azureml://…`: MLflow's REST |
    | `other` | what MLflow may have a plug-in for |

    Example:
        >>> Address.of("postgresql+psycopg2://ann:hush@host/mlflow").kind
        'database'
    """

    kind: str
    uri: str = field(repr=False)  # may hold a password
    scheme: str = field(repr=False, compare=False)

    @classmethod
    def of(cls, uri: str) -> Address:
        """Of any text."""
        scheme, colon, _ = uri.partition(":")
        scheme = scheme.lower() if colon and not uri.startswith(("/", ".")) else "databricks" if uri == "databricks" else ""
        kind = "database" if scheme.partition("+")[0] in _DATABASES else _KINDS.get(scheme, "other")
        return cls(kind, uri, scheme)

    @property
    def is_server(self) -> bool:
        """Whether MLflow speaks to it over REST."""
        return self.kind in ("server", "databricks", "azureml")

    @property
    def shown(self) -> str:
        """The URI without what may be a secret."""
        return masked(self.uri, self.uri)

    @property
    def absolute(self) -> str:
        """The URI for a process with another working directory; InvalidUri where a lake's does not parse."""
        if self.kind == "lake":
            return str(LakeUri.parse(self.uri))
        head, _, path = self.uri.partition(":///")
        return f"sqlite:///{os.path.abspath(path)}" if head == "sqlite" and path and path[0] != "/" else self.uri

    @property
    def identity(self) -> str:
        """What names the place: no credentials, no driver, no query, local paths absolute; InvalidUri where a lake's does not parse."""
        uri = without_secrets(self.uri)
        if self.kind == "lake":
            return str(LakeUri.parse(uri))
        if found := re.match(r"sqlite(?:\+\w+)?:///([^?]*)", uri):
            return f"sqlite:///{os.path.abspath(found[1])}"
        parts = urlsplit(uri)
        if parts.scheme in ("", "file"):
            return f"file://{os.path.abspath(parts.path)}"
        if not parts.hostname:
            return uri
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme.partition('+')[0]}://{parts.hostname}{port}{parts.path.rstrip('/')}"


@dataclass(frozen=True)
class LakeUri:
    """Where a lake lies. Credentials never stand in the URI: they come from the environment.

    | form | storage |
    |---|---|
    | `delta:///absolute/path`, `delta+file:///absolute/path` | a local or mounted folder |
    | `delta:relative/path` | a folder relative to the working directory at the time of parsing |
    | `delta+s3://bucket/prefix` | Amazon S3 and what speaks its protocol |
    | `delta+abfss://container@account.dfs.core.windows.net/prefix` | Azure Data Lake Storage Gen2 |
    | `delta+gs://bucket/prefix` | Google Cloud Storage |
    | any of these without `delta+`, or a plain path | the same, where a lake is expected anyway (the command line) |

    `storage` is `file`, `s3`, `abfss` or `gs`; `root` the folder as Delta engines take it: an absolute path, or a cloud URL.

    Example:
        >>> str(LakeUri.parse("s3://bucket/lake"))
        'delta+s3://bucket/lake'
    """

    storage: str
    root: str

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> LakeUri:
        """Parse any of these forms; InvalidUri for any other, and for credentials, a query or a fragment."""
        text = os.fspath(text)
        scheme = "" if ":" not in text or text.startswith(("/", ".")) else text.split(":", 1)[0].lower()
        if scheme and carries_more(text):
            raise _invalid(
                f"'{masked(text, text)}' carries credentials, a query or a fragment. Take them out of the URI: a lake's credentials come "
                "from the environment (AWS_…, AZURE_…, GOOGLE_…), there from a secret scope."
            )
        if scheme in ("", "delta", "delta+file", "file"):
            return cls("file", os.path.abspath(os.path.expanduser(_local_path(text, scheme))))
        storage = scheme.removeprefix("delta+")
        if storage not in OBJECT_STORES:
            raise _invalid(f"'{text}' is not a lake's URI. Expected {_FORMS}.")
        parts = urlsplit(text)
        if not parts.netloc or (storage == "abfss" and "@" not in parts.netloc):
            raise _invalid(f"'{text}' names no bucket or container. Expected {_FORMS}.")
        return cls(storage, f"{storage}://{parts.netloc}{parts.path.rstrip('/')}")

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


def _local_path(text: str, scheme: str) -> str:
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
    return path


def is_plain_id(id: object) -> bool:
    """Whether a text can be the id of a run, model or experiment: it becomes the name of a folder, so that it must be no more than that."""
    if not isinstance(id, str) or not 0 < len(id) <= LONGEST_ID or ".." in id or id == ".":
        return False
    return id.isprintable() and not any(character in id for character in "/\\%")


def _invalid(message: str) -> InvalidUri:
    from spark_tracking.errors import InvalidUri  # only here: importing MLflow costs more than a cluster's start may take

    return InvalidUri(message)
