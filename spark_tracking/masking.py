"""What may be a secret, in a URI or in any text, and the one function that masks it."""

from __future__ import annotations

import os
import re
from urllib.parse import quote, unquote

MASK = "***"
_PLAIN_QUERY = ("mode", "cache", "uri", "timeout", "charset", "sslmode", "connect_timeout", "application_name")
"""Keys of a query that hold no secret; one with any other is masked whole."""
_URL = re.compile(r"""([A-Za-z][A-Za-z0-9+.-]*:)(/{2,}|(?<=delta:)|(?<=file:))((?:(?!['"`](?:[\s,;:.)\]}]|$)|\w://)\S)+)""")
_WHOLE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)(/{2,}|(?<=delta:)|(?<=file:))(.+)", re.DOTALL)
_NO_USER = re.compile(r"[a-z0-9][a-z0-9._-]*(?:/|$)")  # a bucket
_CONTAINER = re.compile(r"[a-z0-9$-]+@[\w.-]+(?::\d+)?(?:/|$)")
_BARE_USER = re.compile(r"""(?<![\w/@])[^\s'"`/:@]*:[^\s'"`/@]+@(?=[\w\[])""")
_NAMED = re.compile(
    r"""((?:password|passwd|pwd|secret|token|signature|(?:account|access|api)[_-]?key|\bsig|\bsas)(?:["']?\s*=\s*|["']\s*:\s*)["']?"""
    r"""|authorization["']?\s*[:=]\s*["']?(?:bearer|basic)?\s*)([^\s'"&;,)]+)""",
    re.IGNORECASE,
)
_URI_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "SPARK_TRACKING_URI", "SPARK_TRACKING_REGISTRY_URI")
_SECRET_NAME = re.compile(r"(?:PASSWORD|PASSWD|TOKEN|SECRET|ACCESS_KEY|ACCOUNT_KEY|API_KEY|CONNECTION_STRING)$")
_SHORTEST_SECRET = 8  # of a variable's value: a shorter one is a word that messages need


def masked(text: str, *uris: str) -> str:
    """`text` without what may be a secret: the one function that every text goes through before it leaves us.

    Of each URI, also one inside a sentence of another library: `user:password@`, the query and the fragment. Of the process: the values
    of variables such as MLFLOW_TRACKING_TOKEN. And what stands behind `password=`, `"token":` or `Authorization:`. A URI's host and
    path stay, as does the container of an `abfss` URI.

    Args:
        text: a URI, or any text.
        uris: what the text is about; nothing secret of these is left in it, whatever characters it is made of.

    Example:
        >>> masked("cannot open postgresql://ann:p%40ss@db/mlflow?sslkey=x: refused")
        'cannot open postgresql://***@db/mlflow?***: refused'
    """
    known = [uri for uri in (*uris, *(os.environ.get(name, "") for name in _URI_VARIABLES)) if uri and uri in text]
    for number, uri in enumerate(known):  # a URI's path may hold the word that is its password
        text = text.replace(uri, f"\0{number}\0")
    for secret in _secrets(uris):
        text = text.replace(secret, MASK)
    for number, uri in enumerate(known):
        text = text.replace(f"\0{number}\0", _masked_uri(uri))
    if "@" in text and text.count("://") < 2:  # a URI alone, or a sentence that begins with one
        text = _masked_uri(text)
    text = _URL.sub(lambda found: _masked_parts(*found.groups()), text)
    return _NAMED.sub(rf"\1{MASK}", _BARE_USER.sub(f"{MASK}@", text))


def carries_more(uri: str) -> bool:
    """Whether a URI holds more than says where a server is: credentials, a query or a fragment."""
    return masked(uri, uri) != uri or "?" in uri or "#" in uri


def without_secrets(uri: str) -> str:
    """A URI that can be used, with what `masked` masks left out."""
    return uri if masked(uri) == uri else re.sub(r"\*\*\*@|[?#]\*\*\*", "", _masked_uri(uri))


def _secrets(uris: tuple[str, ...]) -> list[str]:
    """What is secret in this process's variables and in some URIs, in each form in which an error may quote it, longest first."""
    found = {value for name, value in os.environ.items() if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name)}
    for uri in uris:
        rest = uri.partition(":")[2].lstrip("/")
        user, at, _ = rest.rpartition("@")
        parts = [*user.partition(":")[::2][1 if ":" in user else 0 :]] if at and not _CONTAINER.match(rest) else []
        query = re.split(r"[?#]", rest.rpartition("@")[2] if at else rest, maxsplit=1)[1:]
        for pair in (pair for text in query for pair in re.split("[&;#]", text)):
            name, equals, value = pair.partition("=")
            parts += [] if name in _PLAIN_QUERY else [value if equals else name]
        found |= {form for part in parts if part for form in (part, unquote(part), quote(part), quote(part, safe=""), repr(part)[1:-1])}
    return sorted((secret for secret in found if len(secret) > 2), key=len, reverse=True)


def _masked_uri(uri: str) -> str:
    """A text that is one URI as a whole, whose password may hold blanks and quotes."""
    found = _WHOLE.match(uri)
    return _masked_parts(*found.groups()) if found else uri


def _masked_parts(scheme: str, slashes: str, rest: str) -> str:
    end = re.search(r"""['"`),.;:\]}]*$""", rest)
    rest, tail = (rest[: end.start()], end[0]) if end else (rest, "")
    storage = scheme[:-1].lower().removeprefix("delta+")
    plain = _CONTAINER if storage in ("abfs", "abfss", "wasb", "wasbs") else _NO_USER if storage in ("s3", "s3a", "gs") else None
    user, at, place = rest.rpartition("@")
    if at and len(slashes) < 3 and (slashes or ":" in user) and not (plain and plain.match(rest)):
        rest = f"{MASK}@{place}"
    rest, hash_sign, fragment = rest.partition("#")
    rest, question, query = rest.partition("?")
    if query and not all(pair.partition("=")[0] in _PLAIN_QUERY for pair in query.split("&")):
        query = MASK
    return f"{scheme}{slashes}{rest}{question}{query}{hash_sign}{MASK if fragment else ''}{tail}"
