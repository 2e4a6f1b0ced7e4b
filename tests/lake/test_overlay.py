"""A search sees the derived table with the news in place of old rows, however many they are."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from spark_tracking.delta.query import Overlaid
from spark_tracking.kinds.rows import rows
from spark_tracking.kinds.state import Entity, Stamp
from spark_tracking.lake.tables import BY_KIND

SPEC = BY_KIND["run"]
IDS = [f"{i:032x}" for i in range(70_000)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> DeltaTable:
    folder: Path = tmp_path_factory.mktemp("base")
    told = {"run_id": pa.array(IDS), "status": pa.array(["RUNNING"] * len(IDS))}
    write_deltalake(folder, pa.table([told.get(f.name, pa.nulls(len(IDS), f.type)) for f in SPEC.schema], schema=SPEC.schema))
    return DeltaTable(folder)


@pytest.mark.parametrize("touched", [0, 1, 500, 501, 69_000, 70_000])
def test_rows_that_have_news_are_left_out_of_the_table(base: DeltaTable, touched: int) -> None:
    entity = Entity("run", IDS[0])
    for key, value in (("created", "1"), ("status", "FINISHED")):
        entity.fold(Stamp(1, "w"), "attr", key, value)
    overlaid = Overlaid(SPEC, base, IDS[:touched], rows("run", [entity] if touched else []))
    assert overlaid.count("status = 'RUNNING'") == len(IDS) - touched
    assert overlaid.count("status = 'FINISHED'") == bool(touched)
    page = overlaid.run(["run_id"], None, ["run_id DESC"], 2, 1).read_all()
    shown = sorted({*IDS[touched:], *IDS[: bool(touched)]}, reverse=True)
    assert page["run_id"].to_pylist() == shown[1:3]
