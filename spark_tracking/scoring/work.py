"""One scoring job, checked and resolved: what both strategies are handed."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from spark_tracking.errors import InvalidInput
from spark_tracking.masking import masked
from spark_tracking.scoring.commits import METADATA_KEY

if TYPE_CHECKING:
    from pyspark.sql.types import DataType, StructType

    from spark_tracking.scoring.model import ResolvedModel
    from spark_tracking.scoring.predict import Plan
    from spark_tracking.scoring.source import Place, Source

Mode = Literal["append", "overwrite", "overwrite_partitions", "merge"]
Strategy = Literal["auto", "files", "udf"]
MODES: tuple[Mode, ...] = ("append", "overwrite", "overwrite_partitions", "merge")
STRATEGIES: tuple[Strategy, ...] = ("auto", "files", "udf")

APP_PREFIX = "spark-tracking.score/"


@dataclass(frozen=True)
class Work:
    """A scoring job.

    Attributes:
        model: what scores.
        source, target: from where to where.
        where: SQL condition on source rows, or None.
        keep: the source columns that go into the target.
        inputs: the source columns that the model gets.
        mode: how the target changes.
        keys: for `merge`, the columns that tell rows apart.
        partition_by: for a target that does not exist yet.
        prediction: name of the prediction's column; `report` adds `<name>_error`.
        plan, returned: for the workers, and the Spark type of their answer; a Spark ML model has no plan.
        model_columns: whether rows get `model_version` and `scored_at`.
        method: the model's method.
        job: the job's name, or None for work that may be repeated.
        since: the source version up to which this job had scored, or None for all rows.
        added: with `since`, path -> version of the files that the source gained after it.
        token: names this attempt, in its files and its commit.
        started: when it began (UTC).
    """

    model: ResolvedModel
    source: Source
    target: Place
    where: str | None
    keep: tuple[str, ...]
    inputs: tuple[str, ...]
    mode: Mode
    keys: tuple[str, ...]
    partition_by: tuple[str, ...]
    prediction: str
    plan: Plan | None
    returned: DataType | None
    model_columns: bool
    method: str
    job: str | None
    since: int | None
    added: Mapping[str, int] | None
    token: str
    started: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.timezone.utc))

    @property
    def app_id(self) -> str | None:
        """The job's name among the target's application transactions."""
        return f"{APP_PREFIX}{self.job}" if self.job else None

    @property
    def app_version(self) -> int:
        """Up to which source version the job has scored after this commit; a source without versions is done once."""
        return self.source.version or 0

    @property
    def reports(self) -> bool:
        """Whether errors become a column."""
        return self.plan is not None and self.plan.on_error == "report"

    @property
    def error_column(self) -> str:
        """Where `report` puts errors."""
        return f"{self.prediction}_error"

    def stamp(self) -> str:
        """What `model_version` says: the registered version, or the start of the digest."""
        return f"{self.model.name}/{self.model.version}" if self.model.name else self.model.digest

    def facts(self, strategy: str, **more: Any) -> dict[str, Any]:
        """What the commit says of where its rows come from."""
        return {
            **self.model.facts(),
            "source": masked(self.source.label),
            "source_version": self.source.version,
            "since_version": self.since,
            "where": self.where,
            "job": self.job,
            "mode": self.mode,
            "strategy": strategy,
            "token": self.token,
            **more,
        }

    def user_metadata(self, strategy: str, **more: Any) -> str:
        """The same as the text that Delta keeps as a commit's `userMetadata`."""
        return json.dumps({METADATA_KEY: self.facts(strategy, **more)})


def output_schema(work: Work) -> StructType:
    """The Spark schema of what a job writes."""
    from pyspark.sql.types import StringType, StructField, StructType, TimestampType

    from spark_tracking.scoring.spark_path import prediction_type

    kinds = {column.name: column.dataType for column in work.source.df.schema}
    fields = [StructField(name, kinds[name]) for name in work.keep]
    fields.append(StructField(work.prediction, prediction_type(work)))
    if work.reports:
        fields.append(StructField(work.error_column, StringType()))
    if work.model_columns:
        fields += [StructField("model_version", StringType()), StructField("scored_at", TimestampType())]
    names = [item.name.lower() for item in fields]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInput(f"The target would have two columns named {', '.join(doubled)}. Choose another prediction= name, or set keep=.")
    return StructType(fields)
