"""A row of a database that is none costs itself; literals are what they say under every setting of a server."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from spark_tracking import read
from spark_tracking.readers.database_connection import Database
from tests.readers.test_databases import mysql, quick_postgresql

BROKEN = {
    "runs_latest": "UPDATE runs SET start_time = 'abc' WHERE name = 'run 07'",
    "experiments_latest": "UPDATE experiments SET creation_time = 'abc' WHERE name = 'vision'",
    "registered_models_latest": "UPDATE registered_models SET creation_time = 1 << 60 WHERE name = 'wine'",
    "model_versions_latest": "UPDATE model_versions SET source = CAST(X'ff61' AS TEXT) WHERE version = 1",
    "logged_models_latest": "UPDATE logged_models SET creation_timestamp_ms = 1 << 60",
}


@pytest.mark.parametrize("table", BROKEN)
def test_a_malformed_row_of_a_database_costs_that_row(
    table: str, database_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = shutil.copy(database_uri.removeprefix("sqlite:///"), tmp_path / "broken.db")
    uri = f"sqlite:///{file}"
    before = read(table, tracking_uri=uri, view_type="all").read_all().num_rows
    with sqlite3.connect(file) as connection:
        connection.execute(BROKEN[table])
    connection.close()
    assert read(table, tracking_uri=uri, view_type="all").read_all().num_rows == before - 1
    assert "cannot be read" in caplog.text


TEXTS = ["plain", "it's", "back\\slash", "\\' OR 1 = 1 --", "\\", "'\\''", "ü🚀\\%_", '"', "line\nend"]


def same(uri: str) -> None:
    database = Database(uri)
    for text in TEXTS:
        assert database.table(f"SELECT {database.text(text)} AS t", pa.schema([("t", pa.string())]))["t"].to_pylist() == [text], text


def test_literals_of_sqlite(database_uri: str) -> None:
    same(database_uri)


@pytest.mark.slow
@pytest.mark.parametrize("server", [quick_postgresql, mysql])
def test_literals_under_every_setting_of_a_server(server: Callable[[Path], object]) -> None:
    import sqlalchemy

    folder = Path("/tmp") / f"spark-tracking-literals-{os.getpid()}"  # where the server's user may look, and short
    folder.mkdir()
    try:
        with server(folder) as uri:  # type: ignore[attr-defined]
            same(uri)
            setting = "ALTER ROLE me SET standard_conforming_strings = off"
            if "mysql" in uri:
                setting = "SET GLOBAL sql_mode = CONCAT(@@sql_mode, ',NO_BACKSLASH_ESCAPES')"
            engine = sqlalchemy.create_engine(uri.replace("me:s3cret", "root:") if "mysql" in uri else uri)
            with engine.begin() as connection:
                connection.exec_driver_sql(setting)
            engine.dispose()
            same(uri)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
