"""The published queries on a lake with known answers, by a stranger's engine; and the statements that register the tables."""

from __future__ import annotations

from pathlib import Path

import datafusion
import pytest
from click.testing import CliRunner
from deltalake import DeltaTable

from spark_tracking.cli import main
from spark_tracking.sync import sync
from spark_tracking.uri import LakeUri

QUERIES = Path(__file__).parents[2] / "notebooks" / "sql"


@pytest.fixture
def engine(database: str, lake_uri: str) -> datafusion.SessionContext:
    sync(database, lake_uri)
    context = datafusion.SessionContext()
    for name in ("runs_latest", "experiments_latest", "run_metrics_history"):
        context.register_table(name, DeltaTable(str(LakeUri.parse(lake_uri).path / name)))
    return context


def test_each_query_gives_the_known_answer(engine: datafusion.SessionContext) -> None:
    def answer(name: str) -> list[dict[str, object]]:
        return engine.sql((QUERIES / f"{name}.sql").read_text()).to_arrow_table().to_pylist()

    assert [(r["runs"], r["experiments"]) for r in answer("runs_per_user")] == [(5, 1)]
    assert [(r["name"], r["runs"], r["failed"]) for r in answer("runs_per_experiment")] == [("vision", 5, 2)]
    assert [(r["runs"], round(float(str(r["failed_share"])), 2)) for r in answer("failures_per_day")] == [(5, 0.4)]
    last = [r["metric_value"] for r in answer("last_value_of_a_metric") if r["metric_name"] == "acc"]
    assert sorted(last) == pytest.approx([i + 0.04 for i in range(6)])


def test_register_prints_a_statement_for_each_table(lake_uri: str, database: str) -> None:
    sync(database, lake_uri)
    told = CliRunner().invoke(main, ["lake", "register", lake_uri, "--catalog", "main", "--schema", "ml"])
    root = LakeUri.parse(lake_uri).root
    assert told.exit_code == 0, told.output
    assert f"CREATE TABLE IF NOT EXISTS `main`.`ml`.runs_latest USING DELTA LOCATION '{root}/runs_latest';" in told.output
