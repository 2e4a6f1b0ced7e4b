"""`lake check` finds what is wrong with a lake, and `rebuild` mends what the logs can mend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake import DeltaTable, write_deltalake

from spark_tracking.lake import Lake
from tests.lake.making import points, run_created, tag, what

Another = Callable[[], Lake]


def runs_latest(lake: Lake) -> DeltaTable:
    return DeltaTable(f"{lake.uri.root}/runs_latest")


def twice(lake: Lake) -> None:
    write_deltalake(runs_latest(lake), runs_latest(lake).to_pyarrow_table().slice(0, 1), mode="append")


def gone(lake: Lake) -> None:
    write_deltalake(runs_latest(lake), runs_latest(lake).to_pyarrow_table().slice(1), mode="overwrite")


def stale(lake: Lake) -> None:
    old = runs_latest(lake).to_pyarrow_table()
    lake.write([tag("r1", "n", "2")])
    lake.settle()
    write_deltalake(runs_latest(lake), old, mode="overwrite")


def foreign(lake: Lake) -> None:
    rows = runs_latest(lake).to_pyarrow_table()
    strange = rows.slice(0, 1).set_column(rows.schema.get_field_index("run_id"), rows.schema.field("run_id"), [["r9"]])
    write_deltalake(runs_latest(lake), strange, mode="append")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (twice, "run 'r1' has 2 rows in runs_latest"),
        (gone, "run 'r1' is in the logs but not shown"),
        (stale, "run 'r1' differs from what the logs say"),
        (foreign, "run 'r9': the logs have lost something of it"),
    ],
)
def test_rows_of_a_derived_table_that_the_logs_do_not_bear_out_are_found_and_mended(
    lake: Lake, another: Another, damage: Callable[[Lake], None], found: str
) -> None:
    lake.write([*run_created("r1"), *run_created("r2"), tag("r1", "n", "1")], [points("r1", "m", 1.0)])
    lake.settle()
    assert another().check().problems == []
    before = what(lake.get("run", "r1"))
    damage(lake)
    assert [problem for problem in another().check().problems if found in problem and "spark-tracking lake rebuild" in problem]
    another().rebuild()
    newcomer = another()
    assert newcomer.check().problems == []
    assert damage is stale or what(newcomer.get("run", "r1")) == before
    assert (newcomer.get("run", "r9") is None) is (damage is not foreign)  # what only a table knows is put back, and never thrown away


def test_a_data_file_that_is_missing_is_named(lake: Lake, another: Another) -> None:
    lake.write(run_created("r1"), [points("r1", "m", 1.0)])
    lake.settle()
    newcomer = another()
    (file,) = Path(lake.uri.root, "run_metrics_history").glob("*.parquet")
    file.rename(file.with_suffix(".away"))
    assert any(file.name in problem for problem in newcomer.check().problems)
