"""What the workers have installed, against what the model asks for."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class WorkerReport:
    """What a look at the workers found.

    Attributes:
        versions: per package the installed versions, one per distinct worker answer; None where it is missing.
        has_package: whether every worker can import this package in this version.
    """

    versions: Mapping[str, frozenset[str | None]]
    has_package: bool


def requirements_of(model: Path) -> list[str]:
    """The lines of the model's `requirements.txt` that name packages; none where it has no such file."""
    file = model / "requirements.txt"
    lines = file.read_text().splitlines() if file.is_file() else []
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith(("#", "-"))]


def look_at_workers(spark: SparkSession, requirements: list[str], *, here: bool) -> WorkerReport:
    """Ask the workers for their packages: in process where they are children of this one with the same Python, else by a small job."""
    names = [name for name in map(_name, requirements) if name]
    if here and os.environ.get("PYSPARK_PYTHON", sys.executable) == sys.executable:
        return WorkerReport({name: frozenset([_installed(name)]) for name in names}, True)
    answers = [json.loads(row[0]) for row in spark.range(0, 8, 1, 4).mapInArrow(_question(names), "answer string").distinct().collect()]
    versions = {name: frozenset(answer["versions"][name] for answer in answers) for name in names}
    return WorkerReport(versions, all(answer["has_package"] for answer in answers))


def _question(names: list[str]) -> Any:
    """A function that is pickled by value, since workers may not have this package: it refers to nothing of this module."""
    from spark_tracking import __version__

    def answer(batches: Iterator[Any]) -> Iterator[Any]:
        import importlib.metadata
        import json

        import pyarrow

        for _ in batches:
            pass
        versions: dict[str, str | None] = {}
        for name in names:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = None
        try:
            import spark_tracking

            has_package = spark_tracking.__version__ == __version__
        except ImportError:
            has_package = False
        text = json.dumps({"versions": versions, "has_package": has_package})
        yield pyarrow.RecordBatch.from_pydict({"answer": [text]})

    return answer


def mismatches(requirements: list[str], versions: Mapping[str, frozenset[str | None]]) -> list[str]:
    """What differs, as readable phrases: `scikit-learn==1.4.2 but 1.9.1`."""
    from packaging.requirements import Requirement

    found = []
    for line in requirements:
        name = _name(line)
        for version in sorted(versions.get(name or "", ()), key=str):
            if version is None:
                found.append(f"{line} but it is not installed")
            elif not Requirement(line).specifier.contains(version, prereleases=True):
                found.append(f"{line} but {version}")
    return found


def _name(requirement: str) -> str | None:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        parsed = Requirement(requirement)
    except InvalidRequirement:
        return None
    return parsed.name if parsed.marker is None or parsed.marker.evaluate() else None


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
