"""The table of kinds: what an experiment, a run, a logged model, a registered model and a version of one are, fact by fact.

A line says in which column a fact stands, in what shape, under which register of the log, and what MLflow calls it: in its
classes, on its REST pages, in its database and in its filters. Lake schemas, rows, sync, MLflow's entities, readers, filters
and the reference page follow from it, so a further kind is one entry.

The first columns of `experiments_latest` and `runs_latest` are those of Databricks' `system.mlflow`
(https://docs.databricks.com/aws/en/admin/system-tables/mlflow), in name, type and order. MLflow's names are those of
`mlflow.protos.service_pb2`, `model_registry_pb2` and `mlflow.store.*.dbmodels.models`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa

from spark_tracking.kinds import shapes
from spark_tracking.kinds.shapes import Registers, Shape
from spark_tracking.kinds.state import Entity

_TOLD = ""  # by the name to the left


class Pairs(NamedTuple):
    """A table of MLflow's database with keys and values of things, whose keys it has, too: its name, its columns of key and value."""

    table: str
    key: str = "key"
    value: str = "value"


@dataclass(frozen=True)
class Column:
    """One fact of a kind.

    Attributes:
        name, shape: its column in the tables.
        register: its register in the log; default its name.
        mlflow: what MLflow's classes call it; default its name.
        rest: its key on a page of the REST API, dots for what is nested; default what the classes say. None: not told there.
        sql: its column in MLflow's database, or its table of pairs; default what the classes say. None: not there.
        filters: what MLflow's filters and orders call it, besides the column's name.
        in_class: whether MLflow's class has it.
        listed: whether the pages of a listing tell it, not only that of the thing alone.
    """

    name: str
    shape: Shape = shapes.TEXT
    register: str = _TOLD
    mlflow: str = _TOLD
    rest: str | None = _TOLD
    sql: str | Pairs | None = _TOLD
    filters: tuple[str, ...] = ()
    in_class: bool = True
    listed: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "register", self.register or self.name)
        object.__setattr__(self, "mlflow", self.mlflow or self.name)
        object.__setattr__(self, "rest", self.mlflow if self.rest == _TOLD else self.rest)
        object.__setattr__(self, "sql", self.mlflow if self.sql == _TOLD else self.sql)


@dataclass(frozen=True)
class Kind:
    """One kind of thing.

    Attributes:
        name, table: in the log, and of its rows.
        key: the column that identifies a row; the id in the log.
        plural: what MLflow's searches, its REST pages and its database call the things.
        columns: its facts, in the order of the table.
        sql_key: the columns of MLflow's database that identify a row.
        about: one sentence for the reference page.
        born: attributes that say when a thing was made, the first that is known.
    """

    name: str
    table: str
    key: str
    plural: str
    columns: tuple[Column, ...]
    sql_key: tuple[str, ...]
    about: str
    born: tuple[str, ...] = ("created",)
    by_name: dict[str, Column] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {column.name: column for column in self.columns})

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns in Arrow."""
        return pa.schema([(column.name, column.shape.type) for column in self.columns])

    @cached_property
    def filters(self) -> dict[str, str]:
        """The columns by what MLflow's filters and orders call them."""
        told = {name: c.name for c in self.columns if c.in_class for name in (c.mlflow, *c.filters)}
        return told | {column.name: column.name for column in self.columns}

    @cached_property
    def _facts(self) -> list[tuple[str, Any, str]]:
        return [(c.mlflow, c.shape.fact, c.register) for c in self.columns if c.shape.fact and c.in_class]

    def facts(self, entity: Entity) -> dict[str, Any]:
        """The single facts by what MLflow's class calls them."""
        return {name: fact(entity, register) for name, fact, register in self._facts}

    def registers(self, row: dict[str, Any]) -> Registers:
        """The registers that a row makes: the inverse of `rows`, but for what points make."""
        found: Registers = {}
        for column in self.columns:
            if column.name in row:
                found |= column.shape.registers(row[column.name], column.register)
        found["attr", "created"] = next((at for name in self.born if (at := found.get(("attr", name)))), "0")
        return found


_ACCOUNT, _WORKSPACE = (Column(name, shapes.UNKNOWN, rest=None, sql=None) for name in ("account_id", "workspace_id"))


def _tags(table: str, rest: str = "tags") -> Column:
    return Column("tags", shapes.PAIRS, "tag", rest=rest, sql=Pairs(table))


def _model_time(name: str, register: str, mlflow: str) -> Column:
    return Column(name, shapes.TIME, register, mlflow, f"info.{mlflow}_ms", f"{mlflow}_ms", (f"{mlflow}_ms",))


def _model_pairs(what: str, key: str = "key") -> Pairs:
    return Pairs(f"logged_model_{what}s", f"{what}_{key}", f"{what}_value")


EXPERIMENT = Kind(
    "experiment",
    "experiments_latest",
    "experiment_id",
    "experiments",
    (
        _ACCOUNT,
        Column("update_time", shapes.TIME, "updated", "last_update_time"),
        Column("delete_time", shapes.DELETION, "deleted", "last_update_time", in_class=False),  # nobody else tells
        _WORKSPACE,
        Column("experiment_id", shapes.ID),
        Column("name", shapes.NEEDED),
        Column("create_time", shapes.TIME, "created", "creation_time"),
        Column("artifact_location"),
        Column("lifecycle_stage", shapes.STAGE),
        _tags("experiment_tags"),
    ),
    sql_key=("experiment_id",),
    about="Experiments in the columns of `system.mlflow.experiments_latest`, and more after them.",
    born=("created", "updated"),
)

RUN = Kind(
    "run",
    "runs_latest",
    "run_id",
    "runs",
    (
        _ACCOUNT,
        Column("update_time", shapes.LAST_CHANGE, rest=None, sql=None),
        Column("delete_time", shapes.DELETION, "deleted", rest=None, sql="deleted_time"),
        _WORKSPACE,
        Column("run_id", shapes.ID, rest="info.run_id", sql="run_uuid"),
        Column("experiment_id", shapes.NEEDED, rest="info.experiment_id"),
        Column("created_by", shapes.USER, mlflow="user_id", rest="info.user_id"),
        Column("start_time", shapes.TIME, rest="info.start_time"),
        Column("end_time", shapes.TIME, rest="info.end_time"),
        Column("run_name", rest="info.run_name", sql="name"),
        Column("status", shapes.RUN_STATUS, rest="info.status"),
        Column("params", shapes.PAIRS, "param", rest="data.params", sql=Pairs("params")),
        _tags("tags", "data.tags"),
        Column("aggregated_metrics", shapes.AGGREGATED, rest="data.metrics"),
        Column("artifact_uri", rest="info.artifact_uri"),
        Column("lifecycle_stage", shapes.STAGE, rest="info.lifecycle_stage"),
        Column("metrics", shapes.LATEST_VALUES, rest="data.metrics", sql=Pairs("latest_metrics")),
        Column("datasets", shapes.DATA, rest="inputs.dataset_inputs"),
        Column("model_inputs", shapes.MODELS, "model_input", rest="inputs.model_inputs", listed=False),
        Column("model_outputs", shapes.STEPPED_MODELS, "model_output", rest="outputs.model_outputs", listed=False),
    ),
    sql_key=("run_uuid",),
    about="Runs in the columns of `system.mlflow.runs_latest`, and more after them. `aggregated_metrics` holds each metric's least, "
    "greatest and latest value; over REST the first two are null, since only the whole history tells them.",
    born=("start_time",),
)

LOGGED_MODEL = Kind(
    "logged_model",
    "logged_models_latest",
    "model_id",
    "logged_models",
    (
        _model_time("update_time", "updated", "last_updated_timestamp"),
        Column("delete_time", shapes.DELETION, "deleted", rest=None, sql=None),
        Column("model_id", shapes.ID, rest="info.model_id"),
        Column("experiment_id", shapes.NEEDED, rest="info.experiment_id"),
        Column("name", rest="info.name"),
        _model_time("create_time", "created", "creation_timestamp"),
        Column("model_type", rest="info.model_type"),
        Column("source_run_id", rest="info.source_run_id"),
        Column("status", shapes.MODEL_STATUS, rest="info.status"),
        Column("status_message", rest="info.status_message"),
        Column("artifact_uri", mlflow="artifact_location", rest="info.artifact_uri"),
        Column("lifecycle_stage", shapes.STAGE, rest="info.lifecycle_stage", in_class=False),
        Column("params", shapes.PAIRS, "param", rest="data.params", sql=_model_pairs("param")),
        Column("tags", shapes.PAIRS, "tag", rest="info.tags", sql=_model_pairs("tag")),
        Column("metrics", shapes.MEASURED, rest="data.metrics", sql=_model_pairs("metric", "name")),
    ),
    sql_key=("model_id",),
    about="Logged models (MLflow 3) with their params, tags and metrics.",
)

REGISTERED_MODEL = Kind(
    "registered_model",
    "registered_models_latest",
    "name",
    "registered_models",
    (
        Column("update_time", shapes.TIME, "updated", "last_updated_timestamp", sql="last_updated_time", filters=("timestamp",)),
        Column("name", shapes.ID),
        Column("create_time", shapes.TIME, "created", "creation_timestamp", sql="creation_time"),
        Column("description", shapes.DESCRIPTION),
        _tags("registered_model_tags"),
        Column("aliases", shapes.NUMBERED, "alias", sql=Pairs("registered_model_aliases", "alias", "version")),
    ),
    sql_key=("name",),
    about="Registered models with their tags and aliases.",
)

MODEL_VERSION = Kind(
    "model_version",
    "model_versions_latest",
    "version_id",
    "model_versions",
    (
        Column("update_time", shapes.TIME, "updated", "last_updated_timestamp", sql="last_updated_time"),
        Column("name", shapes.VERSIONED_NAME),
        Column("version", shapes.VERSION, filters=("version_number",)),
        Column("create_time", shapes.TIME, "created", "creation_timestamp", sql="creation_time"),
        Column("description", shapes.DESCRIPTION),
        Column("created_by", mlflow="user_id"),
        Column("current_stage"),
        Column("source", filters=("source_path",)),
        Column("storage_location", rest=None, in_class=False),
        Column("run_id"),
        Column("run_link"),
        Column("model_id", sql=None),
        Column("status"),
        Column("status_message"),
        _tags("model_version_tags"),
        Column("version_id", shapes.ID, rest=None, sql=None, in_class=False),  # `name/version`, the id in the log
    ),
    sql_key=("name", "version"),
    about="Versions of registered models.",
)

KINDS = (EXPERIMENT, RUN, LOGGED_MODEL, REGISTERED_MODEL, MODEL_VERSION)
BY_NAME = {kind.name: kind for kind in KINDS}
