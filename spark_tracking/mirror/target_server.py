"""An MLflow server as the target of a sync: its REST API for writing, and what the API does not promise.

The API names runs and logged models itself, and a request whose answer is lost may have been carried out. So each carries from its
creation on a tag that says what it is a copy of, and what was perhaps created is looked for before it is created again.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from spark_tracking.errors import InvalidInput, NotFound, PermissionRefused, SparkTrackingError, Unavailable
from spark_tracking.kinds.catalog import Kind
from spark_tracking.lake import Event
from spark_tracking.mirror.copying import LOCK
from spark_tracking.mirror.requests import POINTS_A_REQUEST, Request, deletion, requests
from spark_tracking.mirror.source import Source
from spark_tracking.readers.query import Query, Range
from spark_tracking.readers.reader import Row
from spark_tracking.readers.rest import RestReader

_log = logging.getLogger(__name__)
ORIGIN = "spark_tracking.source"
"""The tag that says what a thing is a copy of: `<source>/<id there>`."""
MARK = "spark_tracking.mirrored"
"""The tag that says in what state it was copied; a run without it was not copied to the end."""
PARENT = "spark_tracking.parent"
"""The tag that holds the parent's id at the source while the parent is not on the target."""
ARTIFACTS = "spark_tracking.artifact_uri"
"""The tag that says where a run's files are, where they were not copied."""
ATTEMPTS = 6
RACES = 4
LOCK_BEAT_SECONDS = 5.0
LOCK_STALE_SECONDS = 30.0


class Server:
    """A target server.

    Attributes:
        source: the same server, as a sync reads it.
        reader: what reads it.
        id: names it in the source lake's bookmarks.
    """

    def __init__(self, uri: str, requests_per_second: float | None, requests_at_once: int) -> None:
        self.source = Source(uri, None, requests_per_second, requests_at_once)
        self.id = self.source.id
        assert isinstance(self.source.reader, RestReader)
        self.reader = self.source.reader
        self._http = self.reader.http

    def rows(self, kind: Kind, **options: Any) -> Iterator[Row]:
        """The things of a kind that it has, those in the trash too."""
        return (row for batch in self.source.rows(kind.table, **options) for row in batch.to_pylist())

    def send(self, request: Request) -> Any:
        """A request whose repetition changes nothing; done again where MLflow lost a race with itself, as two new runs' data sets do."""
        for left in reversed(range(RACES)):
            try:
                return self._http.send(*request, ATTEMPTS)
            except InvalidInput as error:
                if not left or not _is_there_already(error):
                    raise
                time.sleep(random.uniform(0.05, 0.3))
        raise AssertionError

    def create(self, path: str, body: Mapping[str, Any], find: Callable[[], Any]) -> Any:
        """A request that creates something; after a lost answer `find` says whether it is there (None: it is not)."""
        for attempt in range(ATTEMPTS):
            try:
                return self._http.send("POST", path, body, 1)
            except Unavailable:
                time.sleep(min(0.3 * 2**attempt, 20))
                found = find()
                if found is not None:
                    return found
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError

    def copies(self, experiment_ids: Sequence[str], origins: Sequence[str], low: int | None, high: int | None) -> Iterator[Row]:
        """The runs that are copies from a source and started in a span (ms), the ends included."""
        where = f"tags.`{ORIGIN}` = {_text(origins[0])}" if len(origins) == 1 else f"tags.`{ORIGIN}` LIKE '{origins[0].split('/')[0]}/%'"
        wanted, ids = set(origins), tuple(dict.fromkeys(experiment_ids))
        query = Query("runs_latest", ids, filter=where, view_type="all", ordered=False)
        for batch in self.reader.read(query, Range(low or 0, None if high is None else high + 1)):
            yield from (row for row in batch.to_pylist() if dict(row["tags"])[ORIGIN] in wanted)

    def carry_out(self, events: Sequence[Event]) -> None:
        """Changes of one thing."""
        for request in requests(events):
            self.send(request)

    def log_points(self, run_id: str, points: Sequence[Mapping[str, Any]]) -> None:
        """Any number of metric points."""
        for start in range(0, len(points), POINTS_A_REQUEST):
            self._log_some(run_id, points[start : start + POINTS_A_REQUEST])

    def _log_some(self, run_id: str, points: Sequence[Mapping[str, Any]]) -> None:
        """A point whose model has one of its time and step already is logged for the run alone."""
        try:
            self.send(Request("POST", "runs/log-batch", {"run_id": run_id, "metrics": points}))
        except InvalidInput as error:
            if not _is_there_already(error):
                raise
            if len(points) == 1:
                plain = {key: value for key, value in points[0].items() if key in ("key", "value", "timestamp", "step")}
                self._http.send("POST", "runs/log-batch", {"run_id": run_id, "metrics": [plain]}, ATTEMPTS)
                return
            for half in (points[: len(points) // 2], points[len(points) // 2 :]):
                self._log_some(run_id, half)

    @contextmanager
    def lock(self, source_id: str) -> Iterator[None]:
        """One sync of a source at a time: the others wait. Registered models' names are what a server keeps unique.

        A lock whose holder gives no sign of life for a while is taken over. Where the registry may not be written there is no lock.
        """
        name = f"{LOCK}{source_id}"
        owner = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex[:8]}"
        if not self._acquire(name, owner):
            yield
            return
        done = threading.Event()
        beat = threading.Thread(target=self._beat, args=(name, done), daemon=True)
        beat.start()
        try:
            yield
        finally:
            done.set()
            beat.join(LOCK_BEAT_SECONDS)
            with suppress(SparkTrackingError):
                self.send(deletion("registered_model", name))

    def _acquire(self, name: str, owner: str) -> bool:
        seen, since = "", time.monotonic()
        while True:
            try:
                self._http.send("POST", "registered-models/create", {"name": name, "description": owner}, 1)
                return True
            except (PermissionRefused, NotFound) as error:
                _log.info("no lock on %s: %s", self._http.shown, error)
                return False
            except (InvalidInput, Unavailable) as error:
                try:
                    model = self._http.get("registered-models/get", name=name)["registered_model"]
                except NotFound:
                    if isinstance(error, InvalidInput) and "already exists" not in str(error):
                        return False  # a registry that does not take such names
                    continue
                except PermissionRefused:
                    return False
            if model.get("description") == owner:
                return True
            sign = str((model.get("description"), model.get("tags")))
            if sign != seen:
                seen, since = sign, time.monotonic()
            elif time.monotonic() - since > LOCK_STALE_SECONDS:
                with suppress(NotFound):
                    self.send(deletion("registered_model", name))
            time.sleep(LOCK_BEAT_SECONDS / 5)

    def _beat(self, name: str, done: threading.Event) -> None:
        count = 0
        while not done.wait(LOCK_BEAT_SECONDS):
            count += 1
            with suppress(SparkTrackingError):
                self._http.send("POST", "registered-models/set-tag", {"name": name, "key": "beat", "value": str(count)}, 1)


def _is_there_already(error: SparkTrackingError) -> bool:
    """Whether a database behind the server found a row of the same key, in its words for that."""
    said = error.message.lower()
    return any(words in said for words in ("unique constraint", "duplicate entry", "duplicate key", "integrityerror"))


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
