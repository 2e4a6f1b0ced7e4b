"""The local Spark: quiet, with Delta, with this Python, and clear about what it lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from spark_tracking.errors import InvalidState, Unavailable
from spark_tracking.spark import delta_jars
from spark_tracking.spark.delta_jars import java

START = """
import sys
from spark_tracking.spark.local import local_spark
spark = local_spark(memory="512m", connect={connect})
spark.range(3).write.format("delta").save({table!r})
(row,) = spark.read.format("delta").load({table!r}).selectExpr("count(*) AS n").collect()
python = spark.range(1).mapInPandas(lambda frames: (f.assign(id=[__import__("sys").executable]) for f in frames), "id string").first()
print(row["n"], python["id"] == sys.executable)
spark.sql("SELECT 1").explain() if {connect} else spark._jvm.org.slf4j.LoggerFactory.getLogger("a.b").error("a real error")
spark.stop()
"""


def start(table: Path, connect: bool) -> subprocess.CompletedProcess[str]:
    code = START.format(connect=connect, table=str(table))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)


def test_it_starts_with_delta_and_this_python_and_says_nothing_but_errors(spark: object, tmp_path: Path) -> None:
    # `spark` only sees to it that the jars have been downloaded.
    told = start(tmp_path / "three", connect=False)
    assert told.stdout.splitlines()[-1] == "3 True", told.stderr
    (line,) = told.stderr.splitlines()
    assert line.endswith("a real error")


@pytest.mark.slow
def test_the_same_settings_start_a_spark_connect_server(tmp_path: Path) -> None:
    told = start(tmp_path / "three", connect=True)
    assert "3 True" in told.stdout, told.stderr


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DEFAULT_ARTIFACT_REPOSITORY", raising=False)
    return tmp_path


@pytest.mark.spark
def test_jars_that_cannot_be_downloaded_are_an_error_with_what_ivy_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFAULT_ARTIFACT_REPOSITORY", (home / "empty").as_uri())
    with pytest.raises(Unavailable, match=r"(?s)io\.delta:delta-spark.*DEFAULT_ARTIFACT_REPOSITORY.*UNRESOLVED"):
        delta_jars.delta_jars()
    assert not list((home / "cache").rglob("*.classpath"))


@pytest.mark.parametrize(
    ("covers", "used"),
    [("central", True), ("*", True), ("external:*", True), ("other, central", True), ("other", False), ("*,!central", False)],
)
def test_a_mirror_of_maven_central_in_the_users_maven_settings_is_used(home: Path, covers: str, used: bool) -> None:
    (home / ".m2").mkdir()
    (home / ".m2" / "settings.xml").write_text(
        '<settings xmlns="http://maven.apache.org/SETTINGS/1.2.0"><mirrors><mirror>'
        f"<id>m</id><url>https://maven.example.com/all?a&amp;b</url><mirrorOf>{covers}</mirrorOf></mirror></mirrors></settings>"
    )
    assert delta_jars._root() == (' root="https://maven.example.com/all?a&amp;b"' if used else "")


def test_sparks_own_variable_for_the_repository_wins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert delta_jars._root() == ""
    monkeypatch.setenv("DEFAULT_ARTIFACT_REPOSITORY", "https://maven.example.com/")
    assert delta_jars._root() == ' root="https://maven.example.com/"'


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("""echo 'openjdk version "11.0.2"' >&2""", "is Java 11. Install a JDK 17 or newer"),
        ("""echo 'java version "1.8.0_392"' >&2""", "is Java 8. Install a JDK 17 or newer"),
        ("exit 1", "does not run"),
    ],
)
def test_an_unfit_java_is_named_before_spark_starts(home: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str) -> None:
    (home / "bin").mkdir()
    (home / "bin" / "java").write_text(f"#!/bin/sh\n{script}\n")
    (home / "bin" / "java").chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(home))
    with pytest.raises(InvalidState, match=message):
        java()


def test_no_java_at_all(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(InvalidState, match="no `java` was found"):
        java()
