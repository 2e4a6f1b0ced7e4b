"""MLflow's filter language: parsed by MLflow's parsers, with the place of a mistake in the message."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.utils.search_utils import (
    SearchExperimentsUtils,
    SearchLoggedModelsUtils,
    SearchModelUtils,
    SearchModelVersionUtils,
    SearchUtils,
)

from spark_tracking.errors import InvalidInput

Clause = Mapping[str, Any]
_MODEL_CLAUSES = {"metrics": "metric", "params": "parameter", "tags": "tag", "attributes": "attribute"}


def _logged_models(text: str) -> list[Clause]:
    try:
        from mlflow.utils.search_logged_model_utils import parse_filter_string
    except ImportError:  # it needs SQLAlchemy; the other parser knows fewer attributes
        clauses: list[Clause] = SearchLoggedModelsUtils.parse_search_filter(text)
        return clauses
    return [
        {"type": _MODEL_CLAUSES[found.entity.type.value], "key": found.entity.key, "comparator": found.op, "value": found.value}
        for found in parse_filter_string(text)
    ]


_PARSERS: dict[str, Callable[[str], list[Clause]]] = {
    "runs": SearchUtils.parse_search_filter,
    "experiments": SearchExperimentsUtils.parse_search_filter,
    "logged_models": _logged_models,
    "registered_models": SearchModelUtils.parse_search_filter,
    "model_versions": SearchModelVersionUtils.parse_search_filter,
}
_QUOTED_OR_AND = re.compile(r"""'[^']*'|"[^"]*"|`[^`]*`|(\bAND\b)""", re.IGNORECASE)


def parse(kind: str, text: str | None, check: Callable[[str], object] | None = None) -> list[Clause]:
    """The clauses of a filter: type, key, comparator and value of each.

    Args:
        kind: what the filter is on, as in `schemas.Table.filter`.
        check: called with the text (and, to find a mistake's place, with each clause's); raises where it is not right.

    Raises:
        InvalidInput: it does not parse; the message names the first clause that is wrong and its position, counted from 1.
    """
    if not text or not text.strip():
        return []

    def parse_all(part: str) -> list[Clause]:
        clauses = _PARSERS[kind](part)
        if check:
            check(part)
        return clauses

    try:
        return parse_all(text)
    except (MlflowException, ValueError) as error:
        position, part, reason = _first_mistake(text, parse_all) or (1, text, error)
        said = reason.message if isinstance(reason, MlflowException) else str(reason)
        raise InvalidInput(
            f"The filter does not parse at position {position}: {part.strip() or '(nothing)'}. {said} "
            f"Filter: {text}. Expected MLflow's filter language, such as metrics.acc > 0.9 AND params.model = 'svm'."
        ) from None


def _first_mistake(text: str, parse_all: Callable[[str], object]) -> tuple[int, str, Exception] | None:
    for start, part in _clauses(text):
        position = start + len(part) - len(part.lstrip()) + 1
        if not part.strip():
            return position, part, ValueError("A clause is missing here.")
        try:
            if not parse_all(part):
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
