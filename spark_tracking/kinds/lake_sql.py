"""Filters and orders as SQL in DataFusion's dialect over the columns of the lake's derived tables.

Names and values reach the SQL as quoted literals, whatever they hold. A predicate may look into a list column through a
subquery over the searched table itself, under the name `SOURCE`.

Semantics are those of MLflow's SqlAlchemyStore with two wider answers: ILIKE ignores case beyond ASCII (as PostgreSQL does),
and a logged model's status is compared by its name (SQL compares a number that nobody can know).

Example:
    >>> predicate(parse(RUN, "metrics.acc > 0.9 and params.model = 'svm'"))
    "(metrics['acc'] > CAST('0.9' AS DOUBLE) AND NOT isnan(metrics['acc'])) AND params['model'] = 'svm'"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from mlflow.utils.search_utils import SearchExperimentsUtils, SearchModelVersionUtils, SearchUtils

from spark_tracking.kinds.catalog import EXPERIMENT, LOGGED_MODEL, MODEL_VERSION, REGISTERED_MODEL, RUN, Kind
from spark_tracking.kinds.filters import PROMPT_TAG, Comparison, Filter, invalid, parse
from spark_tracking.kinds.shapes import TIMESTAMP

SOURCE = "entities"
"""The name under which a predicate finds the table that it is a predicate on."""
_INT64 = 2**63 - 1


def quote(text: str) -> str:
    """`text` as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def one_of(column: str, values: Iterable[str]) -> str:
    """The predicate that `column` is one of `values`; none is the case for no values at all."""
    literals = ", ".join(map(quote, values))
    return f"{column} IN ({literals})" if literals else "false"


def in_stages(view_type: int) -> str:
    """The predicate for a `ViewType`: active, deleted or both."""
    return one_of("lifecycle_stage", sorted(LifecycleStage.view_type_to_stages(view_type)))


def in_time(column: str, comparator: str, milliseconds: float) -> str:
    """The predicate that compares a time column with milliseconds since the epoch."""
    micros = max(-_INT64, min(_INT64, int(milliseconds * 1000)))
    return f"{column} {comparator} arrow_cast({micros}, 'Timestamp(Microsecond, Some(\"UTC\"))')"


def all_of(*predicates: str) -> str:
    """All of the predicates; 'true' ones are left out."""
    return " AND ".join(p for p in predicates if p != "true") or "true"


# -- filters ----------------------------------------------------------------------------------------------------


def predicate(filter: Filter) -> str:
    """A filter over the derived table of its kind; 'true' for none."""
    clauses = [_comparison(filter.kind, c) for c in filter.comparisons]
    if not filter.prompts:
        # a prompt's versions are left out together
        clauses.append(f"name NOT IN (SELECT name FROM {SOURCE} WHERE tags[{quote(PROMPT_TAG)}] = 'true')")
    return all_of(*clauses)


def logged_models_predicate(text: str | None, datasets: Sequence[Mapping[str, str]] | None = None) -> str:
    """A `search_logged_models` filter.

    Metrics count only where measured on one of `datasets`; without a metric in the filter, a model must have any such metric.

    Raises:
        MlflowException: the filter does not parse.
    """
    filter = parse(LOGGED_MODEL, text)
    on = " OR ".join(f"({_on_dataset(d)})" for d in datasets or ())
    clauses = [_model_metric(c, on) if c.field == "metric" else _comparison(LOGGED_MODEL, c) for c in filter.comparisons]
    if on and not any(c.field == "metric" for c in filter.comparisons):
        clauses.append(_any("model_id", "metrics", "m", on))
    return all_of(*clauses)


def _comparison(kind: Kind, c: Comparison) -> str:
    if c.field == "metric":
        return _model_metric(c) if kind is LOGGED_MODEL else _metric(f"metrics[{quote(c.key)}]", c.comparator, c.value)
    if c.field == "dataset":
        column = f"d['tags'][{quote(MLFLOW_DATASET_CONTEXT)}]" if c.key == "context" else f"d[{quote(c.key)}]"
        return _any("run_id", "datasets", "d", _text(column, c.comparator, c.value))
    if c.field != "attribute":
        return _text(f"{c.field}s[{quote(c.key)}]", c.comparator, c.value)
    if kind.by_name[c.key].shape.type == TIMESTAMP:
        return in_time(c.key, c.comparator, c.value)
    return _number(c.key, c.comparator, c.value) if isinstance(c.value, int) else _text(c.key, c.comparator, c.value)


def _text(column: str, comparator: str, value: Any) -> str:
    if comparator in ("IS NULL", "IS NOT NULL"):
        return f"{column} {comparator}"
    if comparator in ("IN", "NOT IN"):
        among = one_of(column, map(str, value))  # an old MLflow with a new sqlparse finds no values in a list
        return among if comparator == "IN" else f"NOT ({among})"
    if comparator in ("LIKE", "ILIKE"):
        value = value.replace("\\", "\\\\")  # MLflow's LIKE has no escape character, DataFusion's has this one
    return f"{column} {comparator} {quote(str(value))}"


def _number(column: str, comparator: str, value: float) -> str:
    if isinstance(value, int):
        return f"{column} {comparator} {max(-_INT64, min(_INT64, value))}"
    return f"{column} {comparator} CAST({quote(repr(value))} AS DOUBLE)"


def _metric(column: str, comparator: str, value: float) -> str:
    if comparator == "!=":
        return f"({_number(column, comparator, value)} OR isnan({column}))"
    return f"({_number(column, comparator, value)} AND NOT isnan({column}))"


def _model_metric(c: Comparison, on: str = "") -> str:
    inner = all_of(f"m['metric_name'] = {quote(c.key)}", _metric("m['value']", c.comparator, c.value))
    return _any("model_id", "metrics", "m", f"{inner} AND ({on})" if on else inner)


def _on_dataset(dataset: Mapping[str, str]) -> str:
    digest = dataset.get("dataset_digest")
    name = f"m['dataset_name'] = {quote(dataset['dataset_name'])}"
    return name if digest is None else f"{name} AND m['dataset_digest'] = {quote(digest)}"


def _any(key: str, column: str, name: str, predicate: str) -> str:
    return f"{key} IN (SELECT {key} FROM (SELECT {key}, unnest({column}) AS {name} FROM {SOURCE}) WHERE {predicate})"


# -- orders -----------------------------------------------------------------------------------------------------


def runs_order(order_by: Sequence[str] | None) -> list[str]:
    """The `search_runs` order over `runs_latest`: missing values last, NaN before them, then start time and run id.

    Raises:
        MlflowException: a clause does not parse, or names a field twice.
    """
    terms: list[str] = []
    seen: set[tuple[str, str]] = set()
    for clause in order_by or ():
        kind, key, ascending = SearchUtils.parse_order_by_for_search_runs(clause)
        key = SearchUtils.translate_key_alias(key)
        if SearchUtils.is_attribute(kind, key, "="):
            value = RUN.filters.get(key, key)
        elif SearchUtils.is_metric(kind, "="):
            value = f"metrics[{quote(key)}]"
            terms.append(f"CASE WHEN isnan({value}) THEN 1 WHEN {value} IS NULL THEN 2 ELSE 0 END")
        elif SearchUtils.is_tag(kind, "=") or SearchUtils.is_param(kind, "="):
            value = f"{'tags' if kind == 'tag' else 'params'}[{quote(key)}]"
        else:
            raise invalid(f"Invalid identifier type '{kind}'")
        if (kind, key) in seen:
            raise MlflowException(f"`order_by` contains duplicate fields: {order_by}")
        seen.add((kind, key))
        terms.append(f"{value} {'ASC' if ascending else 'DESC'} NULLS LAST")
    if ("attribute", "start_time") not in seen:
        terms.append("start_time DESC NULLS LAST")
    return [*terms, "run_id"]


def experiments_order(order_by: Sequence[str] | None) -> list[str]:
    """The `search_experiments` order: by default the newest first; ties by id, the greatest first."""
    terms, seen = [], set()
    for clause in order_by or ("creation_time DESC", "experiment_id ASC"):
        kind, key, ascending = SearchExperimentsUtils.parse_order_by_for_search_experiments(clause)
        if kind != "attribute":
            raise invalid(f"Invalid order_by entity: {kind}")
        seen.add(key)
        terms.append(_term("CAST(experiment_id AS BIGINT)" if key == "experiment_id" else EXPERIMENT.filters.get(key, key), ascending))
    return terms if "experiment_id" in seen else [*terms, "CAST(experiment_id AS BIGINT) DESC"]


def registered_models_order(order_by: Sequence[str] | None) -> list[str]:
    """The `search_registered_models` order: by name, unless said otherwise."""
    parsed = [SearchUtils.parse_order_by_for_search_registered_models(clause) for clause in order_by or ()]
    return _registry_order(REGISTERED_MODEL, parsed, order_by, {"name": "name"})


def model_versions_order(order_by: Sequence[str] | None) -> list[str]:
    """The `search_model_versions` order: the last updated first, unless said otherwise; ties by name and version."""
    parsed = [_version_order_key(c) for c in order_by or ("last_updated_timestamp DESC", "name ASC", "version_number DESC")]
    return _registry_order(MODEL_VERSION, parsed, order_by, {"name": "name", "version": "version DESC"})


def _version_order_key(clause: str) -> tuple[str, bool]:
    parse_order: Any = SearchModelVersionUtils.parse_order_by_for_search_model_versions
    _, key, ascending = parse_order(clause)
    valid = SearchModelVersionUtils.VALID_ORDER_BY_ATTRIBUTE_KEYS
    if key not in valid:  # a tag's
        raise invalid(f"Invalid order by key '{key}' specified. Valid keys are {valid}")
    return key, ascending


def _registry_order(kind: Kind, keys: Iterable[tuple[str, bool]], order_by: Sequence[str] | None, ties: Mapping[str, str]) -> list[str]:
    terms: dict[str, str] = {}
    for key, ascending in keys:
        column = kind.filters.get(key, key)
        if column in terms:
            raise MlflowException(f"`order_by` contains duplicate fields: {order_by}")
        terms[column] = _term(column, ascending)
    return [*terms.values(), *(term for column, term in ties.items() if column not in terms)]


def _term(column: str, ascending: bool) -> str:
    return column if ascending else f"{column} DESC"
