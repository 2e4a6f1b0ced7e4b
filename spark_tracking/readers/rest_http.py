"""Requests to an MLflow server: MLflow's credentials and plug-ins, our patience.

`Retry-After` (seconds or a date, RFC 9110 section 10.2.3) is obeyed by all readers of a machine at once; see `RateLimit`.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Mapping
from contextlib import closing
from email.utils import parsedate_to_datetime
from typing import Any

import orjson
from mlflow.exceptions import MlflowException
from mlflow.utils.rest_utils import http_request

from spark_tracking import config
from spark_tracking.address import Address
from spark_tracking.errors import InvalidInput, InvalidUri, NotFound, PermissionRefused, SparkTrackingError, Unavailable
from spark_tracking.masking import masked
from spark_tracking.readers.rate_limit import RateLimit

_log = logging.getLogger(__name__)
_RETRIED = (408, 429, 500, 502, 503, 504)
_CHUNK = 64 << 10
ATTEMPTS = 10
TIMEOUT_SECONDS = 120
LONGEST_PAUSE = 60.0


class TooLarge(Unavailable):
    """An answer that is larger than is allowed; a shorter page may not be."""


class Http:
    """One server, asked at most so many times a second with what others on this machine ask of it; None is no limit."""

    def __init__(self, tracking_uri: str, requests_per_second: float | None) -> None:
        self.shown = masked(tracking_uri, tracking_uri)
        self._uri = tracking_uri
        self._credentials = _host_credentials(tracking_uri)
        self.requests_per_second = requests_per_second
        self._limit = RateLimit(tracking_uri)

    def get(self, path: str, **parameters: Any) -> Any:
        """GET `/api/2.0/mlflow/<path>`; the parsed answer."""
        return self._call("GET", path, {"params": {k: v for k, v in parameters.items() if v is not None}})

    def post(self, path: str, body: Mapping[str, Any], attempts: int = ATTEMPTS) -> Any:
        """POST a search, which changes nothing, so that it can be repeated."""
        return self._call("POST", path, {"json": {k: v for k, v in body.items() if v is not None}}, attempts)

    def send(self, method: str, path: str, body: Mapping[str, Any], attempts: int = ATTEMPTS) -> Any:
        """Any request with a JSON body; only one whose repetition changes nothing may have several attempts."""
        return self._call(method, path, {"json": body}, attempts)

    def _call(self, method: str, path: str, arguments: Mapping[str, Any], attempts: int = ATTEMPTS) -> Any:
        reason = ""
        for attempt in range(attempts):
            self._limit.wait(self.requests_per_second)
            try:
                response = http_request(
                    self._host(),
                    path if path.startswith("/") else f"/api/2.0/mlflow/{path}",
                    method,
                    max_retries=0,
                    raise_on_status=False,
                    timeout=TIMEOUT_SECONDS,
                    stream=True,
                    **arguments,
                )
                content = self._content(response, path)
            except SparkTrackingError:
                raise
            except Exception as error:  # connection errors come as several classes, by way of MLflow's or Databricks' client
                reason = masked(str(error), self._uri)
                seconds = None
            else:
                if response.status_code not in (200, *_RETRIED):
                    raise _refusal(response.status_code, content, self.shown, path)
                reason = f"status {response.status_code}"
                seconds = _retry_after(response.headers.get("Retry-After"))
                if response.status_code == 200:
                    try:
                        answer = _parsed(content)
                    except (ValueError, RecursionError) as error:
                        reason = f"half an answer: {error}"
                    else:
                        if isinstance(answer, dict):
                            return answer
                        raise Unavailable(f"The tracking server {self.shown} answers {path} with a {type(answer).__name__}, no object.")
            if attempt + 1 < attempts:
                self._back_off(attempt, seconds, reason)
        raise Unavailable(
            f"The tracking server {self.shown} did not answer {path} after {attempts} attempts ({reason[:300]}). "
            "Check that it runs and can be reached from this machine; a busy server may need requests_per_second=."
        )

    def _content(self, response: Any, path: str) -> bytes:
        """The answer, unpacked as it comes, so that no more of it is held than is allowed."""
        limit, content = config.MAX_PAGE_BYTES.get(), bytearray()
        with closing(response):
            for chunk in response.iter_content(_CHUNK):
                content += chunk
                if len(content) > limit:
                    raise TooLarge(
                        f"The tracking server {self.shown} answers {path} with more than {limit:,} bytes, which is refused. "
                        f"If that is right, set {config.MAX_PAGE_BYTES.name} to a larger number."
                    )
        return bytes(content)

    def _host(self) -> Any:
        """Host and credentials as they are now: MLflow, its plug-ins and Databricks' SDK renew what can be renewed."""
        try:
            return self._credentials()
        except MlflowException as error:
            said = masked(str(error.message).split(". ")[0].splitlines()[0], self._uri)
            raise PermissionRefused(
                f"MLflow finds no credentials for {self.shown} here: {said}. Set them in the environment (DATABRICKS_HOST with "
                "DATABRICKS_TOKEN, or with DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET; MLFLOW_TRACKING_…), and call "
                "spark_tracking.use(spark) after that."
            ) from None

    def _back_off(self, attempt: int, retry_after: float | None, reason: str) -> None:
        seconds = min(LONGEST_PAUSE, 0.2 * 2**attempt)
        _log.info("%s: %s; trying again", self.shown, reason)
        if retry_after is not None:
            self._limit.pause(min(retry_after, 10 * LONGEST_PAUSE))
            seconds = 0.2
        time.sleep(seconds * random.uniform(0.5, 1.5))


def _parsed(content: bytes) -> Any:
    """JSON, of which MLflow's web routes make a superset: with NaN and the infinities as bare words."""
    try:
        return orjson.loads(content or b"{}")
    except orjson.JSONDecodeError:
        return json.loads(content.decode("utf-8", "surrogateescape"))  # a text that is none costs its row


def _host_credentials(tracking_uri: str) -> Any:
    """The function by which MLflow's client, or a plug-in's, finds host and credentials."""
    from mlflow.store.tracking.rest_store import RestStore
    from mlflow.tracking._tracking_service.utils import _get_store

    address = Address.of(tracking_uri)
    scheme, shown = address.scheme, address.shown
    if address.kind == "folder" or scheme == "mssql":
        path = tracking_uri.removeprefix("file://")
        if scheme == "mssql":
            lacks = "is a database of a kind that is not read"
        elif os.path.isfile(path):
            lacks = f"is a file. If it is an SQLite database, name it sqlite:///{'/' if path.startswith('/') else ''}{path.lstrip('/')}"
        elif os.path.isdir(path):
            lacks = "holds no lake, no system.mlflow tables and no mlruns"
        else:
            lacks = "is no folder of this machine"
        raise InvalidUri(
            f"'{shown}' cannot be read: it {lacks}. Expected a lake (delta:///…), an MLflow database (sqlite:///…, "
            "postgresql://…, mysql://…) or a server (http://…, https://…, databricks, azureml://…)."
        )
    try:
        store = _get_store(tracking_uri)
    except Exception as error:
        if scheme in ("s3", "abfss", "gs", "s3a", "abfs"):
            lake = f"delta+{scheme.replace('s3a', 's3')}:{shown.partition(':')[2]}"
            raise InvalidUri(f"'{shown}' holds no lake and no system.mlflow tables. A lake's URI is {lake}.") from None
        said = masked(f"'{tracking_uri}': {str(error).splitlines()[0]}", tracking_uri)
        raise InvalidUri(f"MLflow knows no tracking server for {said}") from None
    if not isinstance(store, RestStore):
        raise InvalidUri(f"'{shown}' leads to a {type(store).__name__}, which is neither a lake, a database nor a server with REST.")
    return store.get_host_creds


def _retry_after(text: str | None) -> float | None:
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _refusal(status: int, content: bytes, shown: str, path: str) -> SparkTrackingError:
    try:
        answer = orjson.loads(content)
        said = str(answer.get("message") or answer)
    except (orjson.JSONDecodeError, AttributeError):
        said = content[:300].decode("utf-8", "replace")
    said = said.strip().rstrip(".")
    if status in (401, 403):
        return PermissionRefused(
            f"The tracking server {shown} refused {path} (status {status}): {said}. Check MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN, or the platform's credentials, and call spark_tracking.use(spark) again "
            "after a change. A notebook's own token cannot be renewed on the workers: use a service principal for long reads."
        )
    if status == 404:
        return NotFound(f"The tracking server {shown} has no such thing ({path}): {said}. Is it an MLflow server of a recent version?")
    return InvalidInput(f"The tracking server {shown} did not accept {path} (status {status}): {said}.")
