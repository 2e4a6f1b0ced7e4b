"""Whatever filter and order MLflow's parser takes, the lake finds the same runs in the same order as MLflow's SQL store."""

from __future__ import annotations

import math
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from packaging.version import Version

from spark_tracking.store.tracking import LakeTrackingStore

pytestmark = pytest.mark.skipif(Version(mlflow.__version__) < Version("3.17"), reason="the oracle is the newest MLflow's SQL store")
KEYS = ["a", "b c", "d.e", "f-g"]
VALUES = ["", "x", "X", "it's", 'say "hi"', "50%", "a_b", "back\\slash", "aXb", "10", "9"]
NUMBERS = [0.0, -1.0, 1.0, 1.5, 1e-300, 1e300, math.nan]


def fill(store: Any) -> None:
    """The same 24 runs in any store: each with some of the keys, metrics with every kind of number."""
    for number in range(24):
        run_id = store.create_run("0", f"user{number % 3}", 1000 + number // 2, [], f"run {number:02}").info.run_id
        chosen = [key for position, key in enumerate(KEYS) if number >> position & 1]
        metrics = [Metric(key, NUMBERS[(number + i) % len(NUMBERS)], number, number) for i, key in enumerate(chosen)]
        params = [Param(key, VALUES[(number * 3 + i) % len(VALUES)]) for i, key in enumerate(chosen)]
        tags = [RunTag(key, VALUES[(number * 5 + i) % len(VALUES)]) for i, key in enumerate(chosen)]
        store.log_batch(run_id, metrics, params, tags)
        if number % 5 == 0:
            store.update_run_info(run_id, 3, 2000 + number, None)
        if number % 7 == 0:
            store.delete_run(run_id)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[list[Any]]:
    """The SQL store and two lakes' worth of the same runs: in the derived tables, and still in the journal."""
    folder = tmp_path_factory.mktemp("search")
    database = folder / "oracle.db"
    database.write_bytes(sqlite_template.read_bytes())
    oracle = SqlAlchemyStore(f"sqlite:///{database}", "file:///artifacts")
    ours = [LakeTrackingStore(f"delta://{folder / name}", "file:///artifacts") for name in ("settled", "fresh")]
    for store in (oracle, *ours):
        fill(store)
    ours[0].lake.settle()
    yield [oracle, *ours]
    oracle._dispose_engine()


def found(store: Any, text: str, order: list[str], size: int | None, view: int) -> list[str]:
    """The names of what is found on all pages, or the error."""
    names: list[str] = []
    token = None
    try:
        while True:
            runs = store.search_runs(["0"], text, view, size, order, token)
            names += [run.info.run_name for run in runs]
            token = runs.token
            if token is None:
                return names
    except MlflowException as error:
        return [f"{error.error_code}: {error.message}"]


keys = st.sampled_from([*KEYS, "missing"])
quoted = st.one_of(st.sampled_from(VALUES), st.text(string.printable, max_size=6)).map(lambda v: f'"{v}"' if "'" in v else f"'{v}'")
names = st.one_of(keys.map(lambda k: f"`{k}`"), keys.map(lambda k: f'"{k}"'), st.sampled_from(["a", "f"]))
numbers = st.one_of(st.sampled_from(["0", "-1", "1", "1.5", "1e300", "1e-300", "0.0", "-0.0"]), st.integers(-5, 5).map(str))
texts = st.sampled_from(["=", "!=", "LIKE", "ILIKE"])
times = st.integers(990, 2030)
clauses = st.one_of(
    st.builds("metrics.{} {} {}".format, names, st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), numbers),
    st.builds("{}.{} {} {}".format, st.sampled_from(["params", "tags"]), names, st.one_of(texts, st.just("like")), quoted),
    st.builds("{}.{} {}".format, st.sampled_from(["params", "tags"]), names, st.sampled_from(["IS NULL", "IS NOT NULL"])),
    st.builds("{} {} {}".format, st.sampled_from(["start_time", "attributes.end_time"]), st.sampled_from(["=", "<", ">=", "!="]), times),
    st.builds("{} {} {}".format, st.sampled_from(["status", "run_name", "attributes.user_id"]), texts,
              st.sampled_from(["'FINISHED'", "'run 1%'", "'RUN 03'", "'user_'", "'%'"])),
)  # fmt: skip
filters = st.one_of(st.lists(clauses, max_size=3).map(" AND ".join), clauses.map(lambda c: c[:-1]), st.text(string.printable, max_size=20))
terms = st.one_of(
    st.builds("{}.`{}` {}".format, st.sampled_from(["metrics", "params", "tags"]), keys, st.sampled_from(["", "ASC", "DESC"])),
    st.builds(
        "{} {}".format,
        st.sampled_from(["start_time", "end_time", "attributes.status", "run_name", "user_id"]),
        st.sampled_from(["", "desc"]),
    ),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], derandomize=True
)
@given(
    text=filters,
    order=st.lists(terms.map(str.strip), max_size=2),
    size=st.sampled_from([None, 5, 100]),
    view=st.sampled_from([ViewType.ACTIVE_ONLY, ViewType.DELETED_ONLY, ViewType.ALL]),
)
def test_any_filter_and_order_finds_what_sql_finds(stores: list[Any], text: str, order: list[str], size: int | None, view: int) -> None:
    # ties of start_time end in the run id, which is another one in each store: the name breaks them first
    order = [*order, "run_name"] if not any("run_name" in term for term in order) else order
    expected, *answers = (found(store, text, order, size, view) for store in stores)
    for answer in answers:
        assert _comparable(answer) == _comparable(expected)


def _comparable(answer: list[str]) -> list[str]:
    """Messages that print a Python set do so in an order that differs by process and copy of the set."""
    return ["".join(sorted(one)) if ": " in one else one for one in answer]


@pytest.mark.parametrize(
    "text",
    ["metrics.`a", "params.a = b", "metrics.a > 'x'", "run_id > 'x'", "datasets.x = '1'", "start_time = 'x'", "a = 1; b = 2", "(", "'"],
)
def test_a_filter_that_does_not_parse_fails_as_it_does_with_sql(stores: list[Any], text: str) -> None:
    expected, *answers = (found(store, text, [], 5, ViewType.ALL) for store in stores)
    assert expected[0].startswith("INVALID_PARAMETER_VALUE")
    assert [_comparable(a) for a in answers] == [_comparable(expected)] * 2


@pytest.mark.parametrize("order", ["foo", "metrics.a UP", "", "a b c", "run_id; drop", "datasets.name"])
def test_an_order_that_does_not_parse_fails_as_it_does_with_sql(stores: list[Any], order: str) -> None:
    expected, *answers = (found(store, "", [order], 5, ViewType.ALL) for store in stores)
    assert [_comparable(a) for a in answers] == [_comparable(expected)] * 2


def test_a_field_ordered_by_twice_is_refused(stores: list[Any]) -> None:
    answers = [found(store, "", ["metrics.a", "metrics.a DESC"], 5, ViewType.ALL) for store in stores]
    assert "duplicate fields" in answers[0][0]
    assert answers == [answers[0]] * 3
