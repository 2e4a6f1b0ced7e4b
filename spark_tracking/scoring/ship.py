"""Bring a model, and where needed this package, to where Spark's workers find it, and say once what of its requirements they lack."""

from __future__ import annotations

import logging
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from packaging.requirements import InvalidRequirement, Requirement

from spark_tracking import __version__
from spark_tracking.scoring.worker.model_cache import ModelCopy
from spark_tracking.spark.ask import ask
from spark_tracking.spark.session import shares_files
from spark_tracking.spark.ship import send_package

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_tracking.scoring.model import ResolvedModel

log = logging.getLogger("spark_tracking.scoring")

_shipped: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def ship(spark: SparkSession, model: ResolvedModel, *, config: dict[str, Any] | None = None) -> ModelCopy:
    """Make a model loadable on every worker; once per session and digest.

    In local mode workers read the model's own folder. Elsewhere (a cluster, Spark Connect) an archive named by its digest
    goes to every node once, and a worker that needs it unpacks it once per node. A server without this package gets it, too.

    Example:
        >>> copy = ship(spark, resolve("models:/wine@champion"))
    """
    done, here = _shipped.setdefault(spark, set()), shares_files(spark)
    archive, requirements = f"mlflow-model-{model.digest}.tar", _requirements(model.path)
    if model.digest not in done:
        packages = _packages(spark, sorted({found.name for line in requirements if (found := _parsed(line))}), here=here)
        if any(versions.get("spark_tracking") != __version__ for versions in packages):
            send_package(spark)
        _warn(model, requirements, packages)
        if not here:
            _send(spark, model.path, archive)
        done.add(model.digest)
    return ModelCopy(
        digest=model.digest,
        folder=str(model.path) if here else None,
        archive=None if here else archive,
        label=model.label,
        requirements=tuple(requirements),
        config=tuple((config or {}).items()),
    )


def _send(spark: SparkSession, folder: Path, name: str) -> None:
    """The model as one uncompressed file: models hardly compress, and nodes unpack it faster."""
    archive = Path(tempfile.mkdtemp(prefix="spark-tracking-")) / name
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname=".")
    spark.addArtifacts(str(archive), file=True)


def _requirements(model: Path) -> list[str]:
    """The lines of the model's `requirements.txt` that name packages; none where it has no such file."""
    file = model / "requirements.txt"
    lines = map(str.strip, file.read_text().splitlines() if file.is_file() else [])
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def _parsed(line: str) -> Requirement | None:
    try:
        found = Requirement(line)
    except InvalidRequirement:
        return None
    return found if found.marker is None or found.marker.evaluate() else None


def _packages(spark: SparkSession, names: list[str], *, here: bool) -> list[dict[str, str | None]]:
    """Workers' answers to what they have installed: asked in this process where they are children of it with the same Python."""
    question = _installed(names)
    if here and os.environ.get("PYSPARK_PYTHON", sys.executable) == sys.executable:
        return [question()]
    return ask(spark, question)


def _installed(names: list[str]) -> Callable[[], dict[str, str | None]]:
    """A question that is sent by value, since workers may not have this package: it refers to nothing of this module."""

    def installed() -> dict[str, str | None]:
        import importlib.metadata

        versions: dict[str, str | None] = {}
        for name in names:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = None
        try:
            import spark_tracking

            return {**versions, "spark_tracking": spark_tracking.__version__}
        except ImportError:
            return versions

    return installed


def _warn(model: ResolvedModel, requirements: list[str], packages: list[dict[str, str | None]]) -> None:
    """Say what differs, as readable phrases: `scikit-learn==1.4.2 but 1.9.1`."""
    differences = []
    for line in requirements:
        wanted = _parsed(line)
        for version in sorted({versions[wanted.name] for versions in packages}, key=str) if wanted else ():
            if version is None:
                differences.append(f"{line} but it is not installed")
            elif wanted and not wanted.specifier.contains(version, prereleases=True):
                differences.append(f"{line} but {version}")
    if differences:
        log.warning(
            "The workers' environment differs from the one that %s was logged with: %s. Predictions may differ or fail; "
            "env_manager='virtualenv' rebuilds it.",
            model.label,
            "; ".join(differences),
        )
