"""The file-native path: where it is allowed, and that it writes the same table as the UDF path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from scoring_models import NUMBERS

from spark_tracking.delta import files as delta_files
from spark_tracking.delta.files import DataFile
from spark_tracking.errors import InvalidState
from spark_tracking.scoring import history, score_table
from spark_tracking.scoring.by_files import deal


def table(spark: SparkSession, path: str, properties: dict[str, str] | None = None, partition_by: tuple[str, ...] = ()) -> str:
    """A Delta table with every kind of column that goes along, in two files or more."""
    rows = spark.createDataFrame(NUMBERS.assign(id=range(len(NUMBERS)))).repartition(2)
    rows = rows.select(
        "*",
        f.expr("CASE WHEN id % 3 = 0 THEN 'a b/ü=%' WHEN id % 3 = 1 THEN NULL ELSE 'c' END AS kind"),
        f.expr("date_add(DATE'1969-12-30', CAST(id % 4 AS INT)) AS day"),
        f.expr("timestamp_micros(id * 1234567890123 - 5000000000) AS at"),
        f.expr("CAST(id AS DECIMAL(20, 3)) / 7 AS price"),
        f.expr("named_struct('list', array(id, NULL), 'map', map('k', CAST(id AS STRING))) AS nested"),
        f.expr("IF(id % 5 = 0, NULL, id % 2 = 0) AS even"),
        f.expr("CAST(CAST(id AS STRING) AS BINARY) AS raw"),
    )
    writer = rows.write.format("delta").partitionBy(*partition_by)
    for name, value in (properties or {}).items():
        writer = writer.option(name, value)
    writer.save(path)
    return path


def read(spark: SparkSession, path: str) -> DataFrame:
    return spark.read.format("delta").load(path)


def same(left: DataFrame, right: DataFrame) -> bool:
    """Equal as bags of rows; text of the rows, since a map does not compare.

    Predictions count to 9 places: their last bits depend on how many rows a model is given at once.
    """
    assert left.schema == right.schema
    if "prediction" in left.columns:
        left, right = (frame.withColumn("prediction", f.round("prediction", 9)) for frame in (left, right))
    text = [f.to_json(f.struct("*"), {"ignoreNullFields": "false"})]
    return sorted(r[0] for r in left.select(*text).collect()) == sorted(r[0] for r in right.select(*text).collect())


def both(spark: SparkSession, model: str, source: str, tmp_path: Path, **more: Any) -> tuple[DataFrame, DataFrame]:
    """The targets of the file-native and the UDF path."""
    for strategy in ("files", "udf"):
        result = score_table(spark, model, source, str(tmp_path / strategy), strategy=strategy, **more)  # type: ignore[arg-type]
        assert result.strategy == strategy
    return read(spark, str(tmp_path / "files")), read(spark, str(tmp_path / "udf"))


@pytest.mark.parametrize(("source_by", "target_by"), [((), ("kind", "even")), (("kind", "day"), ("day",)), (("kind",), ())])
def test_both_strategies_write_the_same_table(
    spark: SparkSession, regressor: str, tmp_path: Path, source_by: tuple[str, ...], target_by: tuple[str, ...]
) -> None:
    source = table(spark, str(tmp_path / "source"), partition_by=source_by)
    ours, sparks = both(spark, regressor, source, tmp_path, partition_by=target_by, on_error="report")
    assert ours.count() == 200
    assert same(ours, sparks)
    assert tuple(delta_files.snapshot(str(tmp_path / "files")).partition_by) == target_by


def test_an_empty_table(spark: SparkSession, regressor: str, tmp_path: Path) -> None:
    source = table(spark, str(tmp_path / "source"))
    spark.sql(f"DELETE FROM delta.`{source}`")
    ours, sparks = both(spark, regressor, source, tmp_path)
    assert ours.count() == 0
    assert same(ours, sparks)


def test_files_from_before_a_column_was_added_give_nulls(spark: SparkSession, regressor: str, tmp_path: Path) -> None:
    source = table(spark, str(tmp_path / "source"))
    later = read(spark, source).limit(20).withColumn("note", f.lit("new"))
    later.write.format("delta").mode("append").option("mergeSchema", "true").save(source)
    ours, sparks = both(spark, regressor, source, tmp_path, keep=["id", "note"])
    assert ours.where("note IS NULL").count() == 200
    assert same(ours, sparks)


def test_one_huge_file_among_small_ones_is_shared_out(spark: SparkSession, regressor: str, tmp_path: Path) -> None:
    source = str(tmp_path / "source")
    big = spark.range(0, 300_000, 1, 1).select("id", f.rand(1).alias("a"), f.rand(2).alias("b"), f.rand(3).alias("c"))
    big.write.format("delta").save(source)
    big.limit(10).repartition(10).write.format("delta").mode("append").save(source)
    result = score_table(spark, regressor, source, str(tmp_path / "files"), keep=["id"], strategy="files")
    assert result.rows == 300_010
    assert len(list((tmp_path / "files").rglob("*.parquet"))) >= 4
    assert read(spark, str(tmp_path / "files")).select("id").exceptAll(read(spark, source).select("id")).count() == 0


def test_model_columns_where_and_report_in_both(spark: SparkSession, regressor: str, tmp_path: Path) -> None:
    source = table(spark, str(tmp_path / "source"), partition_by=("day",))
    ours, sparks = both(spark, regressor, source, tmp_path, where="day < DATE'1970-01-01'", keep=["id"], model_columns=True)
    assert ours.count() == 100
    assert same(ours.drop("scored_at"), sparks.drop("scored_at"))


def test_overwrite_and_overwrite_partitions_leave_what_spark_would(spark: SparkSession, regressor: str, tmp_path: Path) -> None:
    source = table(spark, str(tmp_path / "source"), partition_by=("kind",))
    kept: dict[str, Any] = {"keep": ["id", "kind"], "partition_by": ["kind"]}
    both(spark, regressor, source, tmp_path, **kept)
    ours, sparks = both(spark, regressor, source, tmp_path, mode="overwrite_partitions", where="kind IS NULL", **kept)
    assert ours.count() == 200
    assert same(ours, sparks)
    ours, sparks = both(spark, regressor, source, tmp_path, mode="overwrite", where="kind = 'c'", **kept)
    assert ours.count() == 66
    assert same(ours, sparks)


def test_only_the_columns_that_are_used_are_read(spark: SparkSession, regressor: str, tmp_path: Path) -> None:
    source = table(spark, str(tmp_path / "source"))
    for file in DeltaTable(source).file_uris():  # a column that nobody may touch: its bytes are destroyed
        column = next(c for c in map(pq.read_metadata(file).row_group(0).column, range(12)) if c.path_in_schema == "price")
        data = bytearray(Path(file).read_bytes())
        start = column.dictionary_page_offset or column.data_page_offset
        data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
        Path(file).write_bytes(data)
    assert score_table(spark, regressor, source, str(tmp_path / "target"), keep=["id"], strategy="files").rows == 200
    with pytest.raises(Exception, match=r"Parquet|Snappy|corrupt|Deserializ|[Tt]hrift"):
        score_table(spark, regressor, source, str(tmp_path / "other"), keep=["price"], strategy="files")


SOURCES = {
    "delta.columnMapping.mode": "maps column names",
    "delta.enableTypeWidening": "table feature typeWidening",
}


@pytest.mark.parametrize("feature", [*SOURCES, "deletion vectors"])
def test_sources_that_workers_cannot_read_take_the_udf_path_and_say_why(
    spark: SparkSession, regressor: str, tmp_path: Path, feature: str
) -> None:
    if feature == "deletion vectors":
        source = table(spark, str(tmp_path / "source"), {"delta.enableDeletionVectors": "true"})
        spark.sql(f"DELETE FROM delta.`{source}` WHERE id % 10 = 0")
    else:
        source = table(spark, str(tmp_path / "source"), {feature: "name" if "Mapping" in feature else "true"})
    result = score_table(spark, regressor, source, str(tmp_path / "target"), keep=["id"])
    assert result.strategy == "udf"
    assert SOURCES.get(feature, "the source has deletion vectors") in result.reason
    assert read(spark, str(tmp_path / "target")).count() == read(spark, source).count() == result.rows
    with pytest.raises(InvalidState, match="strategy='files' is not possible here"):
        score_table(spark, regressor, source, str(tmp_path / "target"), keep=["id"], strategy="files")


TARGETS = {
    "CHECK": ("ALTER TABLE {t} ADD CONSTRAINT positive CHECK (id >= 0)", "constraints"),
    "change data feed": ("ALTER TABLE {t} SET TBLPROPERTIES ('delta.enableChangeDataFeed' = 'true')", "change data feed"),
    "deletion vectors": ("ALTER TABLE {t} SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')", "feature deletionVectors"),
    "row tracking": ("ALTER TABLE {t} SET TBLPROPERTIES ('delta.enableRowTracking' = 'true')", "table feature"),
    "column mapping": ("ALTER TABLE {t} SET TBLPROPERTIES ('delta.columnMapping.mode' = 'name')", "column"),
    "clustering": ("ALTER TABLE {t} CLUSTER BY (id)", "table feature"),
    "defaults": ("ALTER TABLE {t} SET TBLPROPERTIES ('delta.feature.allowColumnDefaults' = 'supported')", "allowColumnDefaults"),
}


@pytest.mark.parametrize("feature", TARGETS)
def test_targets_that_spark_must_see_to_take_the_udf_path(spark: SparkSession, regressor: str, tmp_path: Path, feature: str) -> None:
    source, target = table(spark, str(tmp_path / "source")), str(tmp_path / "target")
    spark.sql(f"CREATE TABLE delta.`{target}` (id BIGINT, prediction DOUBLE) USING delta")
    change, reason = TARGETS[feature]
    spark.sql(change.format(t=f"delta.`{target}`"))
    result = score_table(spark, regressor, source, target, keep=["id"])
    assert result.strategy == "udf"
    assert reason in result.reason
    assert read(spark, target).count() == 200


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ("id BIGINT, prediction DOUBLE, twice BIGINT GENERATED ALWAYS AS (id * 2)", "generationExpression"),
        ("id BIGINT, prediction DOUBLE, number BIGINT GENERATED ALWAYS AS IDENTITY", "identity"),
        ("id BIGINT NOT NULL, prediction DOUBLE", "must not be null"),
    ],
)
def test_columns_that_spark_fills_or_checks_take_the_udf_path(
    spark: SparkSession, regressor: str, tmp_path: Path, columns: str, reason: str
) -> None:
    source, target = table(spark, str(tmp_path / "source")), str(tmp_path / "target")
    spark.sql(f"CREATE TABLE delta.`{target}` ({columns}) USING delta")
    result = score_table(spark, regressor, source, target, keep=["id"])
    assert result.strategy == "udf"
    assert reason in result.reason
    assert read(spark, target).count() == 200


def test_the_commit_says_who_wrote_what_from_where(spark: SparkSession, regressor: str, tmp_path: Path) -> None:
    source = table(spark, str(tmp_path / "source"))
    both(spark, regressor, source, tmp_path, keep=["id"])
    for strategy in ("files", "udf"):
        (commit,) = history(str(tmp_path / strategy))
        assert commit.rows == 200
        assert commit.facts["strategy"] == strategy
        assert commit.facts["source"] == source
        assert commit.facts["source_version"] == 0
        assert len(commit.facts["model_digest"]) == 32


def test_statistics_bound_the_values_and_spark_skips_files_by_them(spark: SparkSession, regressor: str, tmp_path: Path) -> None:
    source = str(tmp_path / "source")
    rows = spark.range(0, 100, 1, 1).selectExpr(
        "id", "IF(id = 3, double('NaN'), id / 2.0D) AS a", "1.0D AS b", "0.0D AS c", "timestamp_micros(id * 1500) AS at"
    )
    rows.write.format("delta").save(source)
    target = str(tmp_path / "target")
    score_table(spark, regressor, source, target, strategy="files", on_error="null")
    log = (tmp_path / "target" / "_delta_log" / f"{1:020d}.json").read_text().splitlines()
    stats = json.loads(next(json.loads(line)["add"] for line in log if '"add"' in line)["stats"])
    assert stats["numRecords"] == 100
    assert (stats["minValues"]["id"], stats["maxValues"]["id"]) == (0, 99)
    assert "a" not in stats["maxValues"]  # it has NaN, for Spark the largest number
    assert stats["minValues"]["at"] == "1970-01-01T00:00:00.000Z"
    assert stats["maxValues"]["at"] > "1970-01-01T00:00:00.148"
    assert read(spark, target).where("a > 1e9").count() == 1
    assert read(spark, target).where("at = timestamp_micros(148500)").count() == 1
    assert read(spark, target).where("id = 100").count() == 0


@given(st.lists(st.integers(0, 300 << 20), max_size=60), st.integers(1, 64))
def test_dealing_gives_each_share_of_each_file_to_one_task(sizes: list[int], slots: int) -> None:
    files = [DataFile(f"f{i}", size, None, {"p": i % 3}) for i, size in enumerate(sizes)]
    pieces = [piece for task in deal(files, slots) for piece in task]
    for file in files:
        mine = sorted((piece.start, piece.stop) for piece in pieces if piece.path == file.path)
        assert [start for start, _ in mine] == [0.0, *(stop for _, stop in mine[:-1])]
        assert mine[-1][1] == 1.0
    assert all(deal(files, slots))


@given(st.lists(st.integers(20 << 20, 3000 << 20), min_size=1, max_size=60), st.integers(1, 16))
def test_the_tasks_of_large_files_are_of_about_the_same_size(sizes: list[int], slots: int) -> None:
    files = [DataFile(f"f{i:02}", size, None, {}) for i, size in enumerate(sizes)]
    work = [sum(sizes[int(p.path[1:])] * (p.stop - p.start) for p in task) for task in deal(files, slots)]
    assert max(work) <= 1.25 * sum(sizes) / len(work)
    assert len(work) >= slots


def test_files_that_are_even_stay_whole() -> None:
    files = [DataFile(f"f{i}", size << 20, None, {}) for i, size in enumerate([78, 77, 80, 79])]
    assert [[(piece.path, piece.start, piece.stop) for piece in task] for task in deal(files, 2)] == [
        [("f0", 0.0, 1.0)],
        [("f1", 0.0, 1.0)],
        [("f2", 0.0, 1.0)],
        [("f3", 0.0, 1.0)],
    ]
