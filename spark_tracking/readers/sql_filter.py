"""MLflow's filters as SQL over MLflow's own tables, with the semantics of its SqlAlchemyStore."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_RUN_NAME
from mlflow.utils.search_utils import SearchUtils

from spark_tracking.readers.filters import Clause
from spark_tracking.readers.sql import Database
from spark_tracking.search import PROMPT_TAG


@dataclass(frozen=True)
class Pairs:
    """A table of keys and values that belong to a row: its name, and its columns of owner, key and value."""

    table: str
    owner: str
    key: str = "key"
    value: str = "value"


@dataclass(frozen=True)
class Kind:
    """How a kind of thing lies in MLflow's tables.

    Attributes:
        table: where its rows are.
        id: the column(s) by which others refer to it, with the same names there; the row's alias is `r`.
        pairs: for a type of clause (tag, parameter, metric), where its keys and values are.
        columns: for an attribute in a filter, the column, where the names differ.
    """

    table: str
    id: tuple[str, ...]
    pairs: Mapping[str, Pairs]
    columns: Mapping[str, str] = field(default_factory=dict)


_MODEL_TIMES = {"creation_timestamp": "creation_timestamp_ms", "last_updated_timestamp": "last_updated_timestamp_ms"}
KINDS = {
    "runs": Kind(
        "runs",
        ("run_uuid",),
        {"tag": Pairs("tags", "run_uuid"), "parameter": Pairs("params", "run_uuid"), "metric": Pairs("latest_metrics", "run_uuid")},
        {"run_id": "run_uuid"},
    ),
    "experiments": Kind("experiments", ("experiment_id",), {"tag": Pairs("experiment_tags", "experiment_id")}),
    "logged_models": Kind(
        "logged_models",
        ("model_id",),
        {
            "tag": Pairs("logged_model_tags", "model_id", "tag_key", "tag_value"),
            "parameter": Pairs("logged_model_params", "model_id", "param_key", "param_value"),
            "metric": Pairs("logged_model_metrics", "model_id", "metric_name", "metric_value"),
        },
        _MODEL_TIMES,
    ),
    "registered_models": Kind(
        "registered_models", ("name",), {"tag": Pairs("registered_model_tags", "name")}, {"last_updated_timestamp": "last_updated_time"}
    ),
    "model_versions": Kind(
        "model_versions",
        ("name", "version"),
        {"tag": Pairs("model_version_tags", "name")},
        {
            "source_path": "source",
            "version_number": "version",
            "creation_timestamp": "creation_time",
            "last_updated_timestamp": "last_updated_time",
        },
    ),
}


def conditions(kind: str, clauses: Iterable[Clause], database: Database) -> Iterator[str]:
    """The conditions on a row with the alias `r` that the clauses of a filter make."""
    spec = KINDS[kind]
    prompts = False
    for clause in clauses:
        prompts = prompts or (clause["type"], clause["key"]) == ("tag", PROMPT_TAG)
        yield _condition(kind, spec, clause, database)
    if kind in ("registered_models", "model_versions") and not prompts:
        # A prompt is a registered model with a tag, and nobody means it who does not ask for it.
        prompt = f"x.name = r.name AND {_key(database, PROMPT_TAG)} AND x.value = 'true'"
        yield f"NOT EXISTS (SELECT 1 FROM registered_model_tags x WHERE {prompt})"


def _condition(kind: str, spec: Kind, clause: Clause, database: Database) -> str:
    type_, comparator, value = clause["type"], clause["comparator"].upper(), clause["value"]
    key = SearchUtils.translate_key_alias(clause["key"])
    if type_ == "attribute" and kind == "runs" and key == "run_name":
        type_, key = "tag", MLFLOW_RUN_NAME  # the column is empty for runs of MLflow before 1.30
    if type_ == "attribute":
        return compare(f"r.{spec.columns.get(key, key)}", comparator, value, database)
    if type_ == "dataset":
        return _on_dataset(key, comparator, value, database)
    pairs = spec.pairs[type_]
    owner = " AND ".join(f"x.{name} = r.{name}" for name in spec.id)
    base = f"SELECT 1 FROM {pairs.table} x WHERE {owner} AND {_key(database, key, pairs.key)}"
    if comparator in ("IS NULL", "IS NOT NULL"):
        return f"{'NOT ' if comparator == 'IS NULL' else ''}EXISTS ({base})"
    condition = compare(f"x.{pairs.value}", comparator, float(value) if type_ == "metric" else value, database)
    if type_ == "metric" and kind == "runs":  # NaN is stored as 0, with a mark
        condition = f"({condition} OR x.is_nan)" if comparator == "!=" else f"({condition} AND NOT x.is_nan)"
    return f"EXISTS ({base} AND {condition})"


def _key(database: Database, key: str, column: str = "key") -> str:
    return compare(f"x.{quoted(column, database)}", "=", key, database)


def quoted(column: str, database: Database) -> str:
    """A column's name that is a word of SQL, too."""
    return f"`{column}`" if database.dialect == "mysql" else f'"{column}"'


def _on_dataset(key: str, comparator: str, value: Any, database: Database) -> str:
    joined = "FROM inputs i JOIN datasets d ON i.source_id = d.dataset_uuid"
    condition = "i.destination_id = r.run_uuid AND i.destination_type = 'RUN' AND "
    if key == "context":
        joined += " JOIN input_tags t ON t.input_uuid = i.input_uuid"
        condition += f"t.name = {database.text(MLFLOW_DATASET_CONTEXT)} AND {compare('t.value', comparator, value, database)}"
    else:
        condition += compare(f"d.{key}", comparator, value, database)
    return f"EXISTS (SELECT 1 {joined} WHERE {condition})"


def compare(column: str, comparator: str, value: Any, database: Database) -> str:
    """One comparison, minding the case as MLflow does."""
    if comparator in ("IN", "NOT IN"):
        literals = ", ".join(_literal(v, database) for v in ([value] if isinstance(value, str) else value))
        return f"{_binary(database)}{column} {comparator} ({literals})"
    literal = _literal(value, database)
    if comparator == "ILIKE":
        return f"{column} ILIKE {literal}" if database.dialect == "postgresql" else f"lower({column}) LIKE lower({literal})"
    binary = _binary(database) if isinstance(value, str) else ""
    return f"{binary}{column} {comparator} {literal}"


def _binary(database: Database) -> str:
    return "BINARY " if database.dialect == "mysql" else ""


def _literal(value: Any, database: Database) -> str:
    if isinstance(value, str):
        return database.text(value)
    if isinstance(value, float):
        return repr(max(-sys.float_info.max, min(sys.float_info.max, value)))  # as MLflow stores the infinities
    return str(int(value))
