"""Bring a model, and where needed this package, to where Spark's workers find it; once per session and digest."""

from __future__ import annotations

import hashlib
import logging
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from spark_tracking.scoring.environment import WorkerReport, look_at_workers, mismatches, requirements_of
from spark_tracking.scoring.worker.model_cache import ModelCopy

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_tracking.scoring.model import ResolvedModel

log = logging.getLogger("spark_tracking.scoring")

_shipped: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def ship(spark: SparkSession, model: ResolvedModel, *, config: dict[str, Any] | None = None) -> ModelCopy:
    """Make a model loadable on every worker, and say once what of its requirements the workers lack.

    In local mode workers read the model's own folder. Elsewhere (a cluster, Spark Connect) an archive named by its digest
    goes to every node once, and a worker that needs it unpacks it once per node. A server without this package gets it, too.

    Example:
        >>> copy = ship(spark, resolve("models:/wine@champion"))
    """
    done = _shipped.setdefault(spark, set())
    requirements = requirements_of(model.path)
    local = shares_files(spark)
    if model.digest not in done:
        report = look_at_workers(spark, requirements, here=local)
        if not report.has_package:
            spark.addArtifacts(str(_package_archive()), pyfile=True)
        _warn(model, report)
        if not local:
            spark.addArtifacts(str(_model_archive(model)), file=True)
        done.add(model.digest)
    return ModelCopy(
        digest=model.digest,
        folder=str(model.path) if local else None,
        archive=None if local else _archive_name(model),
        label=model.label,
        requirements=tuple(requirements),
        config=tuple((config or {}).items()),
    )


def shares_files(spark: SparkSession) -> bool:
    """Whether workers see this process's files for certain: they are children of a JVM on this very machine."""
    return not is_connect(spark) and str(spark.sparkContext.master).split("[")[0] == "local"


def is_connect(spark: SparkSession) -> bool:
    """Whether this session is a Spark Connect client."""
    return ".connect." in type(spark).__module__


def _warn(model: ResolvedModel, report: WorkerReport) -> None:
    if found := mismatches(requirements_of(model.path), report.versions):
        log.warning(
            "The workers' environment differs from the one that %s was logged with: %s. Predictions may differ or fail; "
            "env_manager='virtualenv' rebuilds it.",
            model.label,
            "; ".join(found),
        )


def _archive_name(model: ResolvedModel) -> str:
    return f"mlflow-model-{model.digest}.tar"


def _model_archive(model: ResolvedModel) -> Path:
    """The model as one uncompressed file: models hardly compress, and nodes unpack it faster."""
    archive = Path(tempfile.mkdtemp(prefix="spark-tracking-")) / _archive_name(model)
    with tarfile.open(archive, "w") as tar:
        tar.add(model.path, arcname=".")
    return archive


def _package_archive() -> Path:
    """This package as a zip that Python imports from, named by its content: Spark refuses a name with other content."""
    import spark_tracking

    root = Path(spark_tracking.__path__[0])
    files = sorted(file for file in root.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    archive = Path(tempfile.mkdtemp(prefix="spark-tracking-")) / f"spark_tracking-{digest}.zip"
    with zipfile.ZipFile(archive, "w") as package:
        for file in files:
            package.writestr(zipfile.ZipInfo(file.relative_to(root.parent).as_posix()), file.read_bytes())
    return archive
