"""A missing or too old Java or Python is said in one sentence, before anything is downloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PREFLIGHT = Path(__file__).parents[2] / "scripts" / "preflight"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A PATH folder with the few tools that the script itself needs, and neither Python nor Java."""
    for tool in ("sh", "sed", "head", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or pytest.fail(f"no {tool}"))
    return tmp_path


def has(machine: Path, name: str, script: str) -> None:
    """Put an executable shell script on that machine."""
    path = machine / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def has_python(machine: Path, version: str = "3.11", venv: bool = True) -> None:
    """Put a Python of that version there: a real one, told that it is another."""
    real = shutil.which("python3", path=os.defpath) or shutil.which("python3")
    broken = "" if venv else 'case "$2" in *ensurepip*) exit 1;; esac\n'
    major, minor = version.split(".")
    has(
        machine,
        "python3",
        f"{broken}exec {real} -c \"import sys; sys.version_info = ({major}, {minor}); sys.argv = ['', '']; exec('''$2''')\"",
    )


def preflight(machine: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [machine / "sh", PREFLIGHT], env={"PATH": str(machine), **environment}, capture_output=True, text=True, check=False
    )


def refused(machine: Path, **environment: str) -> str:
    """The one line that it says when it refuses."""
    told = preflight(machine, **environment)
    assert told.returncode == 1
    assert told.stdout == ""
    (line,) = told.stderr.splitlines()
    return line


JAVA_17 = """echo 'openjdk version "17.0.9" 2023-10-17' >&2"""


def test_with_both_it_prints_the_python_and_nothing_else(machine: Path) -> None:
    has_python(machine)
    has(machine, "java", JAVA_17)
    told = preflight(machine)
    assert (told.returncode, told.stderr) == (0, "")
    assert Path(told.stdout.strip()).exists()


def test_no_python(machine: Path) -> None:
    assert "Python 3.10 to 3.13 is needed" in refused(machine)


@pytest.mark.parametrize("version", ["3.9", "2.7"])
def test_an_old_python_is_named_with_its_version(machine: Path, version: str) -> None:
    has_python(machine, version)
    assert f"python3 is Python {version}" in refused(machine)


def test_a_python_without_venv_names_the_package_to_install(machine: Path) -> None:
    has_python(machine, venv=False)
    assert "apt-get install python3.11-venv" in refused(machine)


def test_no_java(machine: Path) -> None:
    has_python(machine)
    line = refused(machine)
    assert "no java was found" in line and "Install a JDK 17 or newer" in line


@pytest.mark.parametrize(("told", "version"), [('java version "1.8.0_392"', "8"), ('openjdk version "11.0.21" 2023-10-17', "11")])
def test_an_old_java_is_named_with_its_version(machine: Path, told: str, version: str) -> None:
    has_python(machine)
    has(machine, "java", f"echo '{told}' >&2")
    assert f"is Java {version}." in refused(machine)


def test_java_home_wins_over_the_path_as_it_does_for_spark(machine: Path) -> None:
    has_python(machine)
    has(machine, "java", JAVA_17)
    assert f"{machine}/none/bin/java does not run" in refused(machine, JAVA_HOME=f"{machine}/none")


def test_a_java_that_is_only_a_stub_is_refused(machine: Path) -> None:
    has_python(machine)
    has(machine, "java", "exit 1")
    assert "does not run" in refused(machine)
