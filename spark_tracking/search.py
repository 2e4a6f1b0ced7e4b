"""MLflow's filters and orders, as SQL in DataFusion's dialect over the columns of the lake's derived tables.

MLflow's own parsers read the text, so what does not parse fails exactly as on MLflow's SQL store; this module only turns
their result into predicates (`..._predicate`) and order terms (`..._order`). Names and values reach the SQL as quoted
literals, whatever they hold.

A predicate may look into a list column through a subquery over the searched table itself, under the name `SOURCE`.

Semantics are those of MLflow's SqlAlchemyStore with two wider answers: ILIKE ignores case beyond ASCII (as PostgreSQL does),
and a logged model's status is compared by its name (SQL compares a number that nobody can know).

Example:
    >>> runs_predicate("metrics.acc > 0.9 and params.model = 'svm'")
    "(metrics['acc'] > CAST('0.9' AS DOUBLE) AND NOT isnan(metrics['acc'])) AND params['model'] = 'svm'"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_RUN_NAME
from mlflow.utils.search_utils import SearchExperimentsUtils, SearchModelUtils, SearchModelVersionUtils, SearchUtils

SOURCE = "entities"
"""The name under which a predicate finds the table that it is a predicate on."""
PROMPT_TAG = "mlflow.prompt.is_prompt"
_INT64 = 2**63 - 1
_RUN_COLUMNS = {"user_id": "created_by"}
_EXPERIMENT_COLUMNS = {"creation_time": "create_time", "last_update_time": "update_time"}
_MODEL_COLUMNS = {"timestamp": "update_time", "last_updated_timestamp": "update_time"}
_VERSION_COLUMNS = {
    "version_number": "version",
    "source_path": "source",
    "creation_timestamp": "create_time",
    "last_updated_timestamp": "update_time",
}
LOGGED_MODEL_COLUMNS = {
    **{name: name for name in ("model_id", "experiment_id", "name", "model_type", "source_run_id", "status", "status_message")},
    "lifecycle_stage": "lifecycle_stage",
    "artifact_location": "artifact_uri",
    "creation_timestamp_ms": "create_time",
    "last_updated_timestamp_ms": "update_time",
}


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


def all_of(*predicates: str) -> str:
    """All of the predicates; 'true' ones are left out."""
    return " AND ".join(p for p in predicates if p != "true") or "true"


# -- runs -------------------------------------------------------------------------------------------------------


def runs_predicate(filter_string: str | None) -> str:
    """A `search_runs` filter over `runs_latest`; 'true' for none.

    Raises:
        MlflowException: the filter does not parse (INVALID_PARAMETER_VALUE).
    """
    return all_of(*(_run_clause(c) for c in SearchUtils.parse_search_filter(filter_string)))


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
            value = _RUN_COLUMNS.get(key, key)
        elif SearchUtils.is_metric(kind, "="):
            value = f"metrics[{quote(key)}]"
            terms.append(f"CASE WHEN isnan({value}) THEN 1 WHEN {value} IS NULL THEN 2 ELSE 0 END")
        elif SearchUtils.is_tag(kind, "=") or SearchUtils.is_param(kind, "="):
            value = f"{'tags' if kind == 'tag' else 'params'}[{quote(key)}]"
        else:
            raise _invalid(f"Invalid identifier type '{kind}'")
        if (kind, key) in seen:
            raise MlflowException(f"`order_by` contains duplicate fields: {order_by}")
        seen.add((kind, key))
        terms.append(f"{value} {'ASC' if ascending else 'DESC'} NULLS LAST")
    if ("attribute", "start_time") not in seen:
        terms.append("start_time DESC NULLS LAST")
    return [*terms, "run_id"]


def _run_clause(clause: Mapping[str, Any]) -> str:
    kind, value, comparator = clause["type"], clause["value"], clause["comparator"].upper()
    key = SearchUtils.translate_key_alias(clause["key"])
    if SearchUtils.is_string_attribute(kind, key, comparator):
        # the name of a run is its tag's, as in MLflow's SQL store
        column = f"tags[{quote(MLFLOW_RUN_NAME)}]" if key == "run_name" else _RUN_COLUMNS.get(key, key)
        return _text(column, comparator, value)
    if SearchUtils.is_numeric_attribute(kind, key, comparator):
        return _time(key, comparator, value)
    if SearchUtils.is_metric(kind, comparator):
        return _metric(f"metrics[{quote(key)}]", comparator, float(value))
    if SearchUtils.is_param(kind, comparator):
        return _text(f"params[{quote(key)}]", comparator, value)
    if SearchUtils.is_tag(kind, comparator):
        return _text(f"tags[{quote(key)}]", comparator, value)
    if SearchUtils.is_dataset(kind, comparator):
        column = f"d['tags'][{quote(MLFLOW_DATASET_CONTEXT)}]" if key == "context" else f"d[{quote(key)}]"
        return _any("run_id", "datasets", "d", _text(column, comparator, value))
    raise _invalid(f"Invalid search expression type '{kind}'")


# -- experiments ------------------------------------------------------------------------------------------------


def experiments_predicate(filter_string: str | None) -> str:
    """A `search_experiments` filter over `experiments_latest`; 'true' for none.

    Raises:
        MlflowException: the filter does not parse.
    """
    return all_of(*(_experiment_clause(c) for c in SearchExperimentsUtils.parse_search_filter(filter_string)))


def experiments_order(order_by: Sequence[str] | None) -> list[str]:
    """The `search_experiments` order: by default the newest first; ties by id, the greatest first."""
    terms, seen = [], set()
    for clause in order_by or ("creation_time DESC", "experiment_id ASC"):
        kind, key, ascending = SearchExperimentsUtils.parse_order_by_for_search_experiments(clause)
        if kind != "attribute":
            raise _invalid(f"Invalid order_by entity: {kind}")
        seen.add(key)
        column = "CAST(experiment_id AS BIGINT)" if key == "experiment_id" else _EXPERIMENT_COLUMNS.get(key, key)
        terms.append(_term(column, ascending))
    if "experiment_id" not in seen:
        terms.append("CAST(experiment_id AS BIGINT) DESC")
    return terms


def _experiment_clause(clause: Mapping[str, Any]) -> str:
    kind, key, comparator, value = clause["type"], clause["key"], clause["comparator"], clause["value"]
    if kind == "tag":
        if comparator not in ("=", "!=", "LIKE", "ILIKE", "IS NULL", "IS NOT NULL"):
            raise _invalid(f"Invalid comparator for tag: {comparator}")
        return _text(f"tags[{quote(key)}]", comparator, value)
    if kind != "attribute":
        raise _invalid(f"Invalid token type: {kind}")
    if key == "experiment_id":
        if comparator not in ("=", "!=", "IN", "NOT IN"):
            raise _invalid(f"Invalid comparator for experiment_id: {comparator}")
        ids = [experiment_id(v) for v in value] if isinstance(value, tuple) else experiment_id(value)
        return _text(key, comparator, ids)
    if key in SearchExperimentsUtils.NUMERIC_ATTRIBUTES:
        if comparator not in SearchUtils.VALID_NUMERIC_ATTRIBUTE_COMPARATORS:
            SearchExperimentsUtils.is_numeric_attribute(kind, key, comparator)
            raise _invalid(f"Invalid comparator for numeric attribute: {comparator}")
        return _time(_EXPERIMENT_COLUMNS[key], comparator, _whole(key, value))
    SearchExperimentsUtils.is_string_attribute(kind, key, comparator)
    if comparator not in ("=", "!=", "LIKE", "ILIKE"):
        raise _invalid(f"Invalid comparator for string attribute: {comparator}")
    return _text(key, comparator, value)


def experiment_id(text: str | int) -> str:
    """An experiment's id as the lake has it, from whatever a caller wrote for it ('007').

    Raises:
        MlflowException: it is not a whole number.
    """
    try:
        return str(int(text))
    except (TypeError, ValueError):
        raise _invalid(f"Invalid experiment ID '{text}'. Experiment ID must be a valid integer.") from None


# -- logged models ----------------------------------------------------------------------------------------------


def logged_models_predicate(filter_string: str | None, datasets: Sequence[Mapping[str, str]] | None = None) -> str:
    """A `search_logged_models` filter over `logged_models_latest`; 'true' for none.

    Args:
        datasets: entries with `dataset_name` and maybe `dataset_digest`: metrics count only where measured on one of them;
            without a metric in the filter, a model must have any such metric.

    Raises:
        MlflowException: the filter does not parse.
    """
    on = " OR ".join(f"({_on_dataset(d)})" for d in datasets or ())
    clauses, measured = [], False
    for comparison in _parse_logged_model_filter(filter_string):
        kind, key = comparison.entity.type.value, comparison.entity.key
        if kind == "metrics":
            measured = True
            inner = all_of(f"m['metric_name'] = {quote(key)}", _metric("m['value']", comparison.op, comparison.value))
            clauses.append(_any("model_id", "metrics", "m", f"{inner} AND ({on})" if on else inner))
        elif kind in ("params", "tags"):
            clauses.append(_text(f"{kind}[{quote(key)}]", comparison.op, comparison.value))
        elif key not in LOGGED_MODEL_COLUMNS:
            raise _invalid(f"Invalid attribute name in filter: '{key}'. Valid names are {sorted(LOGGED_MODEL_COLUMNS)}")
        elif comparison.entity.is_numeric():
            clauses.append(_time(LOGGED_MODEL_COLUMNS[key], comparison.op, comparison.value))
        else:
            clauses.append(_text(LOGGED_MODEL_COLUMNS[key], comparison.op, comparison.value))
    if on and not measured:
        clauses.append(_any("model_id", "metrics", "m", on))
    return all_of(*clauses)


def _on_dataset(dataset: Mapping[str, str]) -> str:
    digest = dataset.get("dataset_digest")
    name = f"m['dataset_name'] = {quote(dataset['dataset_name'])}"
    return name if digest is None else f"{name} AND m['dataset_digest'] = {quote(digest)}"


def _parse_logged_model_filter(filter_string: str | None) -> list[Any]:
    if not filter_string:
        return []
    try:
        from mlflow.utils.search_logged_model_utils import parse_filter_string
    except ImportError as error:  # MLflow's parser of these filters imports its SQL models
        raise _invalid(f"A filter on logged models needs the full mlflow package, not mlflow-skinny alone: {error}") from error
    try:
        return cast("list[Any]", parse_filter_string(filter_string))
    except ValueError as error:  # of a number that is none
        raise _invalid(f"Invalid filter string: {filter_string!r}. {error}") from error


# -- registry ---------------------------------------------------------------------------------------------------


def registered_models_predicate(filter_string: str | None) -> str:
    """A `search_registered_models` filter over `registered_models_latest`; leaves prompts out unless they are asked for.

    Raises:
        MlflowException: the filter does not parse.
    """
    clauses = SearchModelUtils.parse_search_filter(filter_string)
    return all_of(*_registry_clauses(clauses, "name"))


def registered_models_order(order_by: Sequence[str] | None) -> list[str]:
    """The `search_registered_models` order: by name, unless said otherwise."""
    parsed = [SearchUtils.parse_order_by_for_search_registered_models(clause) for clause in order_by or ()]
    terms, seen = _registry_order([(_MODEL_COLUMNS.get(key, key), up) for key, up in parsed], order_by)
    return terms if "name" in seen else [*terms, "name"]


def model_versions_predicate(filter_string: str | None) -> str:
    """A `search_model_versions` filter over `model_versions_latest`; leaves prompts and deleted versions out.

    Raises:
        MlflowException: the filter does not parse.
    """
    clauses = SearchModelVersionUtils.parse_search_filter(filter_string)
    return all_of("current_stage != 'Deleted_Internal'", *_registry_clauses(clauses, "name"))


def model_versions_order(order_by: Sequence[str] | None) -> list[str]:
    """The `search_model_versions` order: the last updated first, unless said otherwise; ties by name and version."""
    parsed = [_version_order_key(c) for c in order_by or ("last_updated_timestamp DESC", "name ASC", "version_number DESC")]
    terms, seen = _registry_order([(_VERSION_COLUMNS.get(key, key), up) for key, up in parsed], order_by)
    ties = {"name": "name", "version": "version DESC"}
    return [*terms, *(term for column, term in ties.items() if column not in seen)]


def _version_order_key(clause: str) -> tuple[str, bool]:
    parse: Any = SearchModelVersionUtils.parse_order_by_for_search_model_versions
    _, key, ascending = parse(clause)
    valid = SearchModelVersionUtils.VALID_ORDER_BY_ATTRIBUTE_KEYS
    if key not in valid:  # a tag's
        raise _invalid(f"Invalid order by key '{key}' specified. Valid keys are {valid}")
    return key, ascending


def _registry_order(columns: Iterable[tuple[str, bool]], order_by: Sequence[str] | None) -> tuple[list[str], set[str]]:
    terms: list[str] = []
    seen: set[str] = set()
    for column, ascending in columns:
        if column in seen:
            raise MlflowException(f"`order_by` contains duplicate fields: {order_by}")
        seen.add(column)
        terms.append(_term(column, ascending))
    return terms, seen


def _registry_clauses(clauses: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    prompts = _wants_prompts(clauses)
    asked = [c for c in clauses if prompts or (c["type"], c["key"]) != ("tag", PROMPT_TAG)]
    predicates = [_registry_clause(c) for c in asked]
    if not prompts:
        # a prompt's versions are left out together
        predicates.append(f"{key} NOT IN (SELECT {key} FROM {SOURCE} WHERE tags[{quote(PROMPT_TAG)}] = 'true')")
    return predicates


def _registry_clause(clause: Mapping[str, Any]) -> str:
    kind, key, comparator, value = clause["type"], clause["key"], clause["comparator"], clause["value"]
    if kind == "tag":
        if comparator not in ("=", "!=", "LIKE", "ILIKE"):
            raise _invalid(f"Invalid comparator for tag: {comparator}")
        return _text(f"tags[{quote(key)}]", comparator, value)
    if key in SearchModelVersionUtils.NUMERIC_ATTRIBUTES:
        if comparator not in SearchUtils.VALID_NUMERIC_ATTRIBUTE_COMPARATORS:
            raise _invalid(f"Invalid comparator for attribute {key}: {comparator}")
        return _number(_VERSION_COLUMNS[key], comparator, _whole(key, value))
    if comparator not in ("=", "!=", "LIKE", "ILIKE", "IN", "NOT IN"):
        raise _invalid(f"Invalid comparator for attribute: {comparator}")
    return _text(_VERSION_COLUMNS.get(key, key), comparator, value)


def _wants_prompts(clauses: Iterable[Mapping[str, Any]]) -> bool:
    for c in clauses:
        if c["type"] == "tag" and c["key"] == PROMPT_TAG:
            return (c["comparator"], c["value"].lower()) in (("=", "true"), ("!=", "false"))
    return False


# -- comparisons ------------------------------------------------------------------------------------------------


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


def _time(column: str, comparator: str, milliseconds: float) -> str:
    micros = max(-_INT64, min(_INT64, int(milliseconds * 1000)))
    return f"{column} {comparator} arrow_cast({micros}, 'Timestamp(Microsecond, Some(\"UTC\"))')"


def _any(key: str, column: str, name: str, predicate: str) -> str:
    return f"{key} IN (SELECT {key} FROM (SELECT {key}, unnest({column}) AS {name} FROM {SOURCE}) WHERE {predicate})"


def _term(column: str, ascending: bool) -> str:
    return column if ascending else f"{column} DESC"


def _whole(key: str, value: Any) -> int:
    try:
        if isinstance(value, float):
            raise ValueError
        return int(value)
    except (TypeError, ValueError):
        raise _invalid(f"Invalid value for numeric attribute '{key}': {str(value)!r}") from None


def _invalid(message: str) -> MlflowException:
    return MlflowException(message, INVALID_PARAMETER_VALUE)
