"""The options of the sources: each one's meaning, its check, and where a value comes from if it is not given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

import orjson

from spark_tracking import config
from spark_tracking.errors import InvalidInput
from spark_tracking.here import chosen_experiment
from spark_tracking.masking import masked
from spark_tracking.readers.query import Query, milliseconds, moment
from spark_tracking.sources.defaults import Defaults

OPTIONS: dict[str, str] = {
    "tracking_uri": "The tracking server, without credentials. Default: what `spark_tracking.use(spark)` said, else `MLFLOW_TRACKING_URI` "
    "of the environment in which Spark was started.",
    "experiment_ids": 'Only of these experiments: ids with commas between them. `load("1,2")` of `mlflow-experiment` is the same.',
    "experiment_names": "The same by name: one name, or a JSON list of names.",
    "filter": "MLflow's filter language, evaluated where the data are; for tables about runs it is on the runs.",
    "view_type": "`active_only` (default), `deleted_only` or `all`.",
    "start_after": "Only runs that started at or after: ISO 8601 (without a zone: UTC) or milliseconds since 1970.",
    "start_before": "Only runs that started before.",
    "partitions": "How many tasks read; default by the amount of data.",
    "requests_per_second": "At most so many requests a second of all tasks together, over REST. Default: no limit but the server's own.",
    "version": "Lakes: the Delta version of the table that every action sees.",
    "timestamp": "Lakes: the time whose state every action sees, folded from the lake's logs: as far back as the lake.",
    "as_of": "The same as `timestamp`.",
}
_PATHS = ("path", "paths")


@dataclass(frozen=True)
class Request:
    """A checked set of options: how many tasks read what from where, and how many requests a second they make together."""

    tracking_uri: str = field(repr=False)  # may come from `use`, password included
    query: Query
    partitions: int | None = None
    requests_per_second: float | None = None


def parse_options(options: Mapping[str, str], table: str | None, defaults: Defaults, environ: Mapping[str, str] | None = None) -> Request:
    """Check the options, as Spark hands them over, and fill in what was not given from `defaults`, then the environment.

    `table` is that of a format that has one; else `load` names it.

    Raises:
        InvalidInput: an unknown option or a bad value; the message lists what there is.
    """
    environ = os.environ if environ is None else environ
    given = {name.lower(): value for name, value in options.items()}
    for name in given:
        if name == "owner":  # a property of tables in the catalog, which come with theirs
            raise InvalidInput(f"CREATE TABLE … USING is not supported.{_FORGETS}")
        if name not in OPTIONS and name not in _PATHS:
            near = get_close_matches(name, OPTIONS, 1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise InvalidInput(f"There is no option '{name}'.{hint} Options: {', '.join(OPTIONS)}.")
    named_by_format = table is not None
    paths = _paths(given)
    ids = _ids(given.get("experiment_ids"))
    names = _names(given.get("experiment_names"))
    if table is None:
        if len(paths) != 1:
            raise InvalidInput(f"Name one table to load, such as .load('runs_latest'); got {paths or 'none'}.{_FORGETS}")
        table = paths[0]
    else:
        ids = (*(ids or ()), *(_ids(",".join(paths)) or ())) if paths else ids
    query = Query(
        table,
        ids,
        names,
        given.get("filter"),
        given.get("view_type", "active_only").lower(),
        milliseconds(given.get("start_after"), "start_after"),
        milliseconds(given.get("start_before"), "start_before"),
        _whole(given, "version", 0),
        moment(given.get("timestamp"), given.get("as_of")),
        ordered=False,
    )
    uri = _tracking_uri(given.get("tracking_uri"), defaults, environ)
    request = Request(uri, query, _whole(given, "partitions", 1), _number(given, "requests_per_second"))
    if named_by_format and ids is None and not names:  # last, so that any other mistake is told first
        ids, names = _active_experiment(defaults, environ)
        return replace(request, query=replace(query, experiment_ids=ids, experiment_names=names))
    return request


_FORGETS = (
    " A table made by CREATE TABLE … USING loses its options in Spark. Make a view instead: "
    "CREATE TEMPORARY VIEW name USING mlflow OPTIONS (path 'runs_latest'), or df.createOrReplaceTempView."
)


def _tracking_uri(given: str | None, defaults: Defaults, environ: Mapping[str, str]) -> str:
    if given:
        if (shown := masked(given, given)) != given:
            raise InvalidInput(
                f"The option tracking_uri='{shown}' holds a password, and options can be seen in plans. Call "
                "spark_tracking.use(spark, tracking_uri=…), which carries it unseen, or leave the password to the environment "
                "(PGPASSWORD, MLFLOW_TRACKING_PASSWORD)."
            )
        return given
    uri = defaults.tracking_uri or environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri and "DATABRICKS_RUNTIME_VERSION" in environ:
        uri = "databricks"
    if not uri:
        raise InvalidInput(
            "Spark does not know which tracking server to read. Call spark_tracking.use(spark) after mlflow.set_tracking_uri, "
            "or pass .option('tracking_uri', …), or set MLFLOW_TRACKING_URI where Spark is started."
        )
    return uri


def _active_experiment(defaults: Defaults, environ: Mapping[str, str]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The experiment of `load()`: what `use` found active, else the environment's.

    Raises:
        InvalidInput: neither names one; `0` would be a guess, since what `mlflow.set_experiment` says does not reach Spark.
    """
    if defaults.experiment_ids:
        return defaults.experiment_ids, ()
    if chosen := chosen_experiment(environ):
        return ((chosen.id,), ()) if chosen.id else (None, (chosen.name or "",))
    template = config.EXPERIMENT.get(environ)
    if template and "{" not in template and not template.startswith("/"):
        return None, (template,)
    raise InvalidInput(
        "load() names no experiment, and Spark knows of none that is active: what mlflow.set_experiment says in your process does not "
        'reach it. Call spark_tracking.use(spark) after mlflow.set_experiment, or name one: load("<id>").'
    )


def _paths(given: Mapping[str, str]) -> list[str]:
    if "paths" in given:
        return [str(path) for path in orjson.loads(given["paths"])]
    return [given["path"]] if given.get("path", "").strip() else []


def _ids(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(part.strip() for part in text.strip("[] ").split(",") if part.strip())


def _names(text: str | None) -> tuple[str, ...]:
    if not text:
        return ()
    if text.lstrip().startswith("["):
        try:
            return tuple(map(str, orjson.loads(text)))
        except orjson.JSONDecodeError:
            pass  # a name may begin with a bracket
    return (text,)


def _whole(given: Mapping[str, str], name: str, least: int) -> int | None:
    text = given.get(name)
    if text is not None and not (text.strip().isdigit() and int(text) >= least):
        raise InvalidInput(f"The option {name}='{text}' is not a whole number of {least} or more.")
    return None if text is None else int(text)


def _number(given: Mapping[str, str], name: str) -> float | None:
    text = given.get(name)
    try:
        number = None if text is None else float(text)
    except ValueError:
        number = 0.0
    if number is not None and not 0 < number < float("inf"):
        raise InvalidInput(f"The option {name}='{text}' is not a number above 0.")
    return number
