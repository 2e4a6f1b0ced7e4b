"""Prints docs/reading-reference.md, made from the code so that it cannot drift.

Usage: python scripts/reading_reference.py > docs/reading-reference.md
"""

from __future__ import annotations

import pyarrow as pa

from spark_tracking.readers.schemas import TABLES, Table
from spark_tracking.sources.options import OPTIONS

HEAD = """# Reading: tables, columns and options

Made by `scripts/reading_reference.py` from the code. How to read: [reading.md](reading.md).

## Options

The same for `format("mlflow")` and `format("mlflow-experiment")`, and, as arguments, for `spark_tracking.read`.

| option | meaning |
|---|---|
"""


def document() -> str:
    """The whole page."""
    options = "".join(f"| `{name}` | {meaning} |\n" for name, meaning in OPTIONS.items())
    return HEAD + options + "\n## Tables\n" + "".join(map(section, TABLES.values()))


def section(table: Table) -> str:
    """One table's part of the page."""
    rows = "".join(f"| `{field.name}` | {shown(field.type)} | {unknown(table, field.name)} |\n" for field in table.schema)
    order = ", ".join(f"`{name}`" for name in table.order)
    subject = table.kind.plural.replace("_", " ")
    head = f"\n### {table.name}\n\n{table.about} Filters are on {subject}. `spark_tracking.read` orders by {order}.\n\n"
    return f"{head}| column | type | null when read from |\n|---|---|---|\n{rows}"


def unknown(table: Table, column: str) -> str:
    """The ways in which a column is not known."""
    ways = {"a server": table.unknown_rest, "a database": table.unknown_database}
    return ", ".join(way for way, columns in ways.items() if column in columns)


def shown(kind: pa.DataType) -> str:
    """A type as Spark SQL writes it."""
    if pa.types.is_map(kind):
        return f"map<{shown(kind.key_type)},{shown(kind.item_type)}>"
    if pa.types.is_list(kind):
        return f"array<{shown(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{','.join(f'{field.name}:{shown(field.type)}' for field in kind)}>"
    return {"int64": "bigint", "timestamp[us, tz=UTC]": "timestamp"}.get(str(kind), str(kind))


if __name__ == "__main__":
    print(document(), end="")
