"""A further kind of thing is one entry: its rows from the log, a page and a database, and its way back into the log, follow from that."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from spark_tracking import read
from spark_tracking.kinds import catalog, rows, shapes
from spark_tracking.kinds.catalog import Column, Kind, Pairs
from spark_tracking.kinds.state import Entity, Stamp
from spark_tracking.readers import pages, schemas

EVALUATION_DATASET = Kind(
    "evaluation_dataset",
    "evaluation_datasets_latest",
    "dataset_id",
    "evaluation_datasets",
    (
        Column("update_time", shapes.TIME, "updated", "last_update_time"),
        Column("dataset_id", shapes.ID),
        Column("name", shapes.NEEDED),
        Column("create_time", shapes.TIME, "created", "created_time"),
        Column("created_by", shapes.USER),
        Column("digest"),
        Column("tags", shapes.PAIRS, "tag", sql=Pairs("evaluation_dataset_tags")),
    ),
    sql_key=("dataset_id",),
    about="Data sets that models are evaluated on.",
)
PAGE = [
    {"dataset_id": "d-1", "name": "one", "created_time": "5", "last_update_time": 7, "tags": [{"key": "k", "value": "v"}], "digest": "x"},
    {"dataset_id": "d-2", "name": "two", "created_time": 6, "created_by": "ann"},
]


@pytest.fixture(autouse=True)
def another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.BY_NAME, EVALUATION_DATASET.name, EVALUATION_DATASET)
    monkeypatch.setitem(schemas.TABLES, EVALUATION_DATASET.table, schemas.table_for(EVALUATION_DATASET))


def test_a_page_and_a_database_give_the_same_rows(database_uri: str, tmp_path: Path) -> None:
    file = shutil.copy(database_uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    with sqlite3.connect(file) as db:
        for one in PAGE:
            names = ("dataset_id", "name", "created_time", "last_update_time", "created_by", "digest")
            db.execute(f"INSERT INTO evaluation_datasets ({', '.join(names)}) VALUES (?, ?, ?, ?, ?, ?)", [one.get(n) for n in names])
        db.execute("INSERT INTO evaluation_dataset_tags VALUES ('d-1', 'k', 'v')")
    db.close()
    found = read("evaluation_datasets_latest", tracking_uri=f"sqlite:///{file}").read_all()
    assert found.to_pylist() == pages.things("evaluation_datasets_latest", PAGE).to_pylist()
    assert found["name"].to_pylist() == ["one", "two"]


def test_rows_go_into_the_log_and_come_out_as_they_were() -> None:
    before = pages.things("evaluation_datasets_latest", PAGE).to_pylist()
    entities = []
    for row in before:
        entity = Entity(EVALUATION_DATASET.name, row["dataset_id"])
        for (field, key), value in EVALUATION_DATASET.registers(row).items():
            if value is not None:
                entity.fold(Stamp(1, "w"), field, key, value)
        entities.append(entity)
    after = rows.rows(EVALUATION_DATASET.name, entities).drop_columns(["state"]).to_pylist()
    assert after == [{**row, "created_by": row["created_by"] or ""} for row in before]
