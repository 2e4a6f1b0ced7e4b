"""Filters as SQL over MLflow's own tables, with the semantics of its SqlAlchemyStore."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from spark_tracking.kinds.catalog import RUN, Kind, Pairs
from spark_tracking.kinds.filters import PROMPT_TAG, Comparison, Filter
from spark_tracking.readers.database_connection import Database


def conditions(filter: Filter, database: Database) -> Iterator[str]:
    """The conditions on a row with the alias `r` of the kind's table that a filter makes."""
    yield from (_condition(filter.kind, c, database) for c in filter.comparisons)
    if not filter.prompts:  # a prompt is a registered model with a tag, and nobody means it who does not ask for it
        prompt = f"x.name = r.name AND {_key(database, PROMPT_TAG)} AND x.value = 'true'"
        yield f"NOT EXISTS (SELECT 1 FROM registered_model_tags x WHERE {prompt})"


def _condition(kind: Kind, c: Comparison, database: Database) -> str:
    if c.field == "attribute":
        return compare(f"r.{kind.by_name[c.key].sql}", c.comparator, c.value, database)
    if c.field == "dataset":
        return _on_dataset(c, database)
    pairs = kind.by_name[f"{c.field}s"].sql
    assert isinstance(pairs, Pairs)
    owner = " AND ".join(f"x.{name} = r.{name}" for name in kind.sql_key)
    base = f"SELECT 1 FROM {pairs.table} x WHERE {owner} AND {_key(database, c.key, pairs.key)}"
    if c.comparator in ("IS NULL", "IS NOT NULL"):
        return f"{'NOT ' if c.comparator == 'IS NULL' else ''}EXISTS ({base})"
    condition = compare(f"x.{pairs.value}", c.comparator, c.value, database)
    if c.field == "metric" and kind is RUN:  # NaN is stored as 0, with a mark
        condition = f"({condition} OR x.is_nan)" if c.comparator == "!=" else f"({condition} AND NOT x.is_nan)"
    return f"EXISTS ({base} AND {condition})"


def _key(database: Database, key: str, column: str = "key") -> str:
    return compare(f"x.{quoted(column, database)}", "=", key, database)


def quoted(column: str, database: Database) -> str:
    """A column's name that is a word of SQL, too."""
    return f"`{column}`" if database.dialect == "mysql" else f'"{column}"'


def _on_dataset(c: Comparison, database: Database) -> str:
    joined = "FROM inputs i JOIN datasets d ON i.source_id = d.dataset_uuid"
    condition = "i.destination_id = r.run_uuid AND i.destination_type = 'RUN' AND "
    if c.key == "context":
        joined += " JOIN input_tags t ON t.input_uuid = i.input_uuid"
        condition += f"t.name = {database.text(MLFLOW_DATASET_CONTEXT)} AND {compare('t.value', c.comparator, c.value, database)}"
    else:
        condition += compare(f"d.{c.key}", c.comparator, c.value, database)
    return f"EXISTS (SELECT 1 {joined} WHERE {condition})"


def compare(column: str, comparator: str, value: Any, database: Database) -> str:
    """One comparison, minding the case as MLflow does."""
    if comparator in ("IN", "NOT IN"):
        literals = ", ".join(literal(v, database) for v in ([value] if isinstance(value, str) else value))
        return f"{_binary(database)}{column} {comparator} ({literals})"
    shown = literal(value, database)
    if comparator == "ILIKE":
        return f"{column} ILIKE {shown}" if database.dialect == "postgresql" else f"lower({column}) LIKE lower({shown})"
    binary = _binary(database) if isinstance(value, str) else ""
    return f"{binary}{column} {comparator} {shown}"


def _binary(database: Database) -> str:
    return "BINARY " if database.dialect == "mysql" else ""


def literal(value: Any, database: Database) -> str:
    """A text or a number in SQL."""
    if isinstance(value, str):
        return database.text(value)
    if isinstance(value, float):
        return repr(max(-sys.float_info.max, min(sys.float_info.max, value)))  # as MLflow stores the infinities
    return str(int(value))
