"""From a tracking URI to the reader that fits it, and `read`, the reading without Spark."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence

import pyarrow as pa

from spark_tracking.address import Address, LakeUri
from spark_tracking.errors import InvalidInput
from spark_tracking.here import active_tracking_uri
from spark_tracking.readers.query import Query, Time, milliseconds, moment
from spark_tracking.readers.reader import Reader


def open_reader(tracking_uri: str, *, requests_per_second: float | None = None, requests_at_once: int = 4) -> Reader:
    """The reader for a tracking server.

    Args:
        tracking_uri: `delta:` and its kin (a lake), `sqlite:`, `postgresql:`, `mysql:` (an MLflow database), or what
            MLflow reaches over REST: `http(s):`, `databricks`, `azureml:` and other plug-ins. A folder or cloud URL with Delta
            tables in the layout of `system.mlflow`, or an `mlruns/` folder, is read, too.
        requests_per_second, requests_at_once: at most so many requests a second, and under way, over REST.

    Raises:
        InvalidUri: no reader fits.
        LakeFormatError, NotFound, Unavailable, PermissionRefused: there is nothing to be read at it.

    Example:
        >>> open_reader("sqlite:////srv/mlflow.db").name
        'the MLflow database sqlite:////srv/mlflow.db'
    """
    kind = Address.of(tracking_uri).kind
    layout = _layout(tracking_uri) if kind in ("folder", "store") else kind
    if layout == "lake":
        from spark_tracking.readers.lake import LakeReader

        return LakeReader(tracking_uri)
    if layout == "tables":
        from spark_tracking.readers.lake import SystemTablesReader

        return SystemTablesReader(tracking_uri)
    if layout == "database":
        from spark_tracking.readers.database import DatabaseReader

        return DatabaseReader(tracking_uri)
    if kind == "folder" or "://" not in tracking_uri:
        from spark_tracking.readers.folder import FolderReader, folder_of

        folder = folder_of(tracking_uri)
        if folder is not None:
            return FolderReader(tracking_uri, folder)
    from spark_tracking.readers.rest import RestReader

    return RestReader(tracking_uri, requests_per_second, requests_at_once)


def _layout(uri: str) -> str:
    """What a folder or cloud URL holds, as `layout_of` says."""
    place = LakeUri.parse(uri)
    if place.is_local and not place.path.is_dir():
        return ""
    from spark_tracking.lake.system_tables import layout_of

    return layout_of(place.root)


def read(
    table: str,
    *,
    tracking_uri: str | None = None,
    experiment_ids: Sequence[str | int] | None = None,
    experiment_names: Sequence[str] | None = None,
    filter: str | None = None,
    view_type: str = "active_only",
    start_after: Time | None = None,
    start_before: Time | None = None,
    version: int | None = None,
    timestamp: Time | None = None,
    as_of: Time | None = None,
    requests_per_second: float | None = None,
    **unknown: object,
) -> pa.RecordBatchReader:
    """Read a table of any tracking server into Arrow.

    Args:
        table: one of the tables in docs/reading.md, such as `runs_latest`.
        tracking_uri: the server; default `mlflow.get_tracking_uri()`, if that was set.
        experiment_ids: only of these experiments; default all that can be seen.
        experiment_names: the same by name, in addition.
        filter: MLflow's filter language, evaluated where the data are; for tables about runs it is on the runs.
        view_type: `active_only`, `deleted_only` or `all`.
        start_after, start_before: only runs that started at or after / before.
        version, timestamp: a lake's state of then: the Delta version of the table, or a time, as far back as the lake.
        as_of: the same as `timestamp`.
        requests_per_second: at most so many requests a second, over REST.

    Returns:
        A stream of record batches in the table's order. It is read once; `pandas`, `polars.from_arrow` and DuckDB take it
        without a copy, `.read_all()` makes a table of it.

    Raises:
        InvalidInput: a wrong table, option or filter, or no tracking server was named.
        NotFound, PermissionRefused, Unavailable: as the server says.

    Example:
        >>> read("runs_latest", tracking_uri="delta:///lake", filter="metrics.acc > 0.9").read_pandas()
    """
    for name in unknown:
        options = [option for option in inspect.signature(read).parameters if option not in ("table", "unknown")]
        near = difflib.get_close_matches(name, options, 1)
        hint = f" Did you mean {near[0]}=?" if near else ""
        raise InvalidInput(f"read() has no option '{name}'.{hint} It takes {', '.join(options)}.")
    if isinstance(experiment_ids, str) or isinstance(experiment_names, str):
        raise InvalidInput("experiment_ids and experiment_names take lists, such as experiment_ids=['1', '2'].")
    query = Query(
        table,
        None if experiment_ids is None else tuple(map(str, experiment_ids)),
        tuple(experiment_names or ()),
        filter,
        view_type,
        milliseconds(start_after, "start_after"),
        milliseconds(start_before, "start_before"),
        version,
        moment(timestamp, as_of),
    )
    reader = open_reader(tracking_uri or active_tracking_uri(), requests_per_second=requests_per_second)
    query = reader.resolve(query)
    return pa.RecordBatchReader.from_batches(query.spec.schema, reader.read(query))
