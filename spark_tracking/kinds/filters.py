"""MLflow's filter language, parsed once: the text by MLflow's own parsers, then what each clause may compare with what.

So what does not parse fails exactly as on MLflow's SQL store. `kinds.lake_sql` and `readers.database_filters` make SQL of the result.

Example:
    >>> parse(RUN, "metrics.acc > 0.9 and params.model = 'svm'").comparisons
    (Comparison(field='metric', key='acc', comparator='>', value=0.9), Comparison(field='param', key='model', comparator='=', value='svm'))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from mlflow.utils.search_utils import (
    SearchExperimentsUtils,
    SearchLoggedModelsUtils,
    SearchModelUtils,
    SearchModelVersionUtils,
    SearchUtils,
)

from spark_tracking.errors import InvalidInput
from spark_tracking.kinds.catalog import EXPERIMENT, LOGGED_MODEL, MODEL_VERSION, REGISTERED_MODEL, RUN, Kind
from spark_tracking.kinds.shapes import TIME

PROMPT_TAG = "mlflow.prompt.is_prompt"
LOGGED_MODEL_ATTRIBUTES = {column.sql: column.name for column in LOGGED_MODEL.columns if isinstance(column.sql, str)}
"""The columns of logged models by what filters and orders call them."""
_TEXT = ("=", "!=", "LIKE", "ILIKE")
_NULLS = ("IS NULL", "IS NOT NULL")
_LISTS = ("IN", "NOT IN")


class Comparison(NamedTuple):
    """One clause of a filter.

    Attributes:
        field: `attribute`, `param`, `tag`, `metric` or `dataset`.
        key: of an attribute, the column in the catalog.
        comparator: in capitals, one that the field has.
        value: text, a tuple of texts for a list, None for nulls; a whole number for times and versions, a float for metrics.
    """

    field: str
    key: str
    comparator: str
    value: Any


class Filter(NamedTuple):
    """What things are asked for: all comparisons hold; prompts, which are registered models too, are among them or not."""

    kind: Kind
    comparisons: tuple[Comparison, ...]
    prompts: bool = True


def parse(kind: Kind, text: str | None) -> Filter:
    """A filter as its SQL store understands it.

    Raises:
        MlflowException: it does not parse (INVALID_PARAMETER_VALUE).
    """
    read, check = _LANGUAGES.get(kind.name, (_read_none, _run))
    clauses = read(text or "")
    if kind not in (REGISTERED_MODEL, MODEL_VERSION):
        return Filter(kind, tuple(map(check, clauses)))
    prompts = _wants_prompts(clauses)
    there = [Comparison("attribute", "current_stage", "!=", STAGE_DELETED_INTERNAL)] if kind is MODEL_VERSION else []
    asked = (check(c) for c in clauses if prompts or (c["type"], c["key"]) != ("tag", PROMPT_TAG))
    return Filter(kind, (*there, *asked), prompts)


def invalid(message: str) -> MlflowException:
    """What MLflow raises for a parameter that is wrong."""
    return MlflowException(message, INVALID_PARAMETER_VALUE)


def experiment_id(text: str | int) -> str:
    """An experiment's id as the lake has it, from whatever a caller wrote for it ('007').

    Raises:
        MlflowException: it is not a whole number.
    """
    try:
        return str(int(text))
    except (TypeError, ValueError):
        raise invalid(f"Invalid experiment ID '{text}'. Experiment ID must be a valid integer.") from None


# -- what each kind's clauses may be ----------------------------------------------------------------------------

Clause = Mapping[str, Any]


def _run(clause: Clause) -> Comparison:
    kind, value, comparator = clause["type"], clause["value"], clause["comparator"].upper()
    key = SearchUtils.translate_key_alias(clause["key"])
    if SearchUtils.is_string_attribute(kind, key, comparator):
        if key == "run_name":  # the name of a run is its tag's, as in MLflow's SQL store
            return Comparison("tag", MLFLOW_RUN_NAME, comparator, value)
        return Comparison("attribute", RUN.filters.get(key, key), comparator, value)
    if SearchUtils.is_numeric_attribute(kind, key, comparator):
        return Comparison("attribute", key, comparator, int(value))
    if SearchUtils.is_metric(kind, comparator):
        return Comparison("metric", key, comparator, float(value))
    if SearchUtils.is_param(kind, comparator):
        return Comparison("param", key, comparator, value)
    if SearchUtils.is_tag(kind, comparator):
        return Comparison("tag", key, comparator, value)
    if SearchUtils.is_dataset(kind, comparator):
        return Comparison("dataset", key, comparator, value)
    raise invalid(f"Invalid search expression type '{kind}'")


def _experiment(clause: Clause) -> Comparison:
    kind, key, comparator, value = clause["type"], clause["key"], clause["comparator"], clause["value"]
    if kind == "tag":
        return Comparison("tag", key, _one_of(comparator, (*_TEXT, *_NULLS), "tag"), value)
    if kind != "attribute":
        raise invalid(f"Invalid token type: {kind}")
    if key == "experiment_id":
        _one_of(comparator, ("=", "!=", *_LISTS), key)
        return Comparison(kind, key, comparator, tuple(map(experiment_id, value)) if isinstance(value, tuple) else experiment_id(value))
    if key in SearchExperimentsUtils.NUMERIC_ATTRIBUTES:
        if comparator not in SearchUtils.VALID_NUMERIC_ATTRIBUTE_COMPARATORS:
            SearchExperimentsUtils.is_numeric_attribute(kind, key, comparator)
            raise invalid(f"Invalid comparator for numeric attribute: {comparator}")
        return Comparison(kind, EXPERIMENT.filters[key], comparator, _whole(key, value))
    SearchExperimentsUtils.is_string_attribute(kind, key, comparator)
    return Comparison(kind, key, _one_of(comparator, _TEXT, "string attribute"), value)


def _logged_model(clause: tuple[str, str, str, Any]) -> Comparison:
    field, key, comparator, value = clause
    if field == "metric":
        return Comparison(field, key, comparator, float(value))
    if field in ("param", "tag"):
        return Comparison(field, key, comparator, value)
    if key not in LOGGED_MODEL_ATTRIBUTES:
        raise invalid(f"Invalid attribute name in filter: '{key}'. Valid names are {sorted(LOGGED_MODEL_ATTRIBUTES)}")
    column = LOGGED_MODEL_ATTRIBUTES[key]
    return Comparison("attribute", column, comparator, int(value) if LOGGED_MODEL.by_name[column].shape is TIME else value)


def _read_logged_models(text: str) -> list[tuple[str, str, str, Any]]:
    if not text:
        return []
    try:
        from mlflow.utils.search_logged_model_utils import parse_filter_string
    except ImportError:  # it imports MLflow's SQL models; the parser of mlflow-skinny knows fewer attributes
        found = SearchLoggedModelsUtils.parse_search_filter(text)
        named = {"creation_timestamp": "creation_timestamp_ms", "last_updated_timestamp": "last_updated_timestamp_ms"}
        return [(c["type"].replace("parameter", "param"), named.get(c["key"], c["key"]), c["comparator"], c["value"]) for c in found]
    try:
        return [(c.entity.type.value.removesuffix("s"), c.entity.key, c.op, c.value) for c in parse_filter_string(text)]
    except ValueError as error:  # of a number that is none
        raise invalid(f"Invalid filter string: {text!r}. {error}") from error


def _read_none(text: str) -> list[Clause]:
    if text:
        raise invalid(f"MLflow has no filters for these things. Filter: {text}")
    return []


def _registry(kind: Kind) -> Callable[[Clause], Comparison]:
    def check(clause: Clause) -> Comparison:
        type_, key, comparator, value = clause["type"], clause["key"], clause["comparator"], clause["value"]
        if type_ == "tag":
            return Comparison("tag", key, _one_of(comparator, _TEXT, "tag"), value)
        if key in SearchModelVersionUtils.NUMERIC_ATTRIBUTES:
            _one_of(comparator, SearchUtils.VALID_NUMERIC_ATTRIBUTE_COMPARATORS, f"attribute {key}")
            return Comparison("attribute", kind.filters[key], comparator, _whole(key, value))
        return Comparison("attribute", kind.filters.get(str(key), str(key)), _one_of(comparator, (*_TEXT, *_LISTS), "attribute"), value)

    return check


_LANGUAGES: dict[str, tuple[Callable[[str], Sequence[Any]], Callable[[Any], Comparison]]] = {
    "run": (SearchUtils.parse_search_filter, _run),
    "experiment": (SearchExperimentsUtils.parse_search_filter, _experiment),
    "logged_model": (_read_logged_models, _logged_model),
    "registered_model": (SearchModelUtils.parse_search_filter, _registry(REGISTERED_MODEL)),
    "model_version": (SearchModelVersionUtils.parse_search_filter, _registry(MODEL_VERSION)),
}


def _one_of(comparator: str, known: Iterable[str], what: str) -> str:
    if comparator not in known:
        raise invalid(f"Invalid comparator for {what}: {comparator}")
    return comparator


def _whole(key: str, value: Any) -> int:
    try:
        if isinstance(value, float):
            raise ValueError
        return int(value)
    except (TypeError, ValueError):
        raise invalid(f"Invalid value for numeric attribute '{key}': {str(value)!r}") from None


def _wants_prompts(clauses: Iterable[Clause]) -> bool:
    for c in clauses:
        if c["type"] == "tag" and c["key"] == PROMPT_TAG:
            return (c["comparator"], c["value"].lower()) in (("=", "true"), ("!=", "false"))
    return False


# -- for readers: with the place of a mistake -------------------------------------------------------------------

_QUOTED_OR_AND = re.compile(r"""'[^']*'|"[^"]*"|`[^`]*`|(\bAND\b)""", re.IGNORECASE)


def parse_located(kind: Kind, text: str | None) -> Filter:
    """The same for people.

    Raises:
        InvalidInput: it does not parse; the message names the first clause that is wrong and its position, counted from 1.
    """
    if not text or not text.strip():
        return parse(kind, None)
    try:
        return parse(kind, text)
    except (MlflowException, ValueError) as error:
        position, part, reason = _first_mistake(kind, text) or (1, text, error)
        said = reason.message if isinstance(reason, MlflowException) else str(reason)
        raise InvalidInput(
            f"The filter does not parse at position {position}: {part.strip() or '(nothing)'}. {said} "
            f"Filter: {text}. Expected MLflow's filter language, such as metrics.acc > 0.9 AND params.model = 'svm'."
        ) from None


def _first_mistake(kind: Kind, text: str) -> tuple[int, str, Exception] | None:
    for start, part in _clauses(text):
        position = start + len(part) - len(part.lstrip()) + 1
        if not part.strip():
            return position, part, ValueError("A clause is missing here.")
        try:
            if not parse(kind, part).comparisons:
                raise ValueError("This is no comparison.")
        except (MlflowException, ValueError) as error:
            return position, part, error
    return None


def _clauses(text: str) -> Iterator[tuple[int, str]]:
    """The text between the ANDs, each with its offset."""
    start = 0
    for match in _QUOTED_OR_AND.finditer(text):
        if match.group(1):
            yield start, text[start : match.start()]
            start = match.end()
    yield start, text[start:]
