"""Whatever a model returns becomes Arrow of the asked type, or a clear error; and what it is given is what pandas shows."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.models import infer_signature
from scoring_models import NUMBERS, save_function

from spark_tracking.errors import InvalidInput, InvalidState
from spark_tracking.scoring.worker.model_cache import ModelCopy
from spark_tracking.scoring.worker.model_call import ModelCall, to_frame
from spark_tracking.scoring.worker.outputs import WrongRowCount, to_array

DOUBLES, LONGS, TEXTS = pa.list_(pa.float64()), pa.list_(pa.int64()), pa.list_(pa.string())


@pytest.mark.parametrize(
    ("result", "wanted", "expected"),
    [
        (np.array([1, 2]), pa.float64(), [1.0, 2.0]),
        (np.array([1.5, math.nan]), pa.float64(), [1.5, None]),
        (np.array([1, 2], dtype=np.int32), pa.int64(), [1, 2]),
        (np.array([[1.0, 2.0], [3.0, 4.0]]), pa.float64(), [1.0, 3.0]),
        (np.array([[1.0, 2.0], [3.0, 4.0]]), DOUBLES, [[1.0, 2.0], [3.0, 4.0]]),
        (np.array([1, 2]), LONGS, [[1], [2]]),
        (np.arange(8.0).reshape(2, 2, 2), pa.list_(DOUBLES), [[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0], [6.0, 7.0]]]),
        (["a", None], pa.string(), ["a", None]),
        ([1.5, 2.0], pa.string(), ["1.5", "2.0"]),
        ([True, False], pa.bool_(), [True, False]),
        (pd.Series([1.0, 2.0], index=[7, 3]), pa.float32(), [1.0, 2.0]),
        (pd.DataFrame({"t": ["x", "y"], "n": [1, 2]}), pa.int64(), [1, 2]),
        (pd.DataFrame({"t": ["x", "y"], "n": [1, 2]}), TEXTS, [["x", "1"], ["y", "2"]]),
        ({"n": np.array([1, 2])}, pa.int64(), [1, 2]),
        ([[1.0], [2.0, 3.0]], DOUBLES, [[1.0], [2.0, 3.0]]),
        ([dt.date(2024, 1, 2), None], pa.date32(), [dt.date(2024, 1, 2), None]),
        ([Decimal("1.50"), None], pa.decimal128(5, 2), [Decimal("1.50"), None]),
        ([b"x", None], pa.binary(), [b"x", None]),
        ([{"k": 1}, {}], pa.map_(pa.string(), pa.int64()), [[("k", 1)], []]),
        (3.5, pa.float64(), [3.5]),
    ],
)
def test_each_form_of_output(result: Any, wanted: pa.DataType, expected: list[Any]) -> None:
    array = to_array(result, wanted, len(expected))
    assert array.type == wanted
    assert array.to_pylist() == expected


def test_structs_take_fields_by_name_nested_as_deep_as_they_go() -> None:
    wanted = pa.struct([("label", pa.string()), ("more", pa.struct([("scores", DOUBLES), ("by", pa.map_(pa.string(), pa.float64()))]))])
    rows = [{"more": {"by": {"a": 0.5}, "scores": [0.1, 0.9]}, "label": "x"}, {"more": None, "label": None}]
    expected = [{"label": "x", "more": {"scores": [0.1, 0.9], "by": [("a", 0.5)]}}, {"label": None, "more": None}]
    assert to_array(rows, wanted, 2).to_pylist() == expected
    assert to_array(pd.DataFrame(rows), wanted, 2).to_pylist() == expected
    with pytest.raises(InvalidInput, match="no field 'label'; it has: name"):
        to_array(pd.DataFrame({"name": ["x"]}), wanted, 1)


def test_unnamed_columns_fill_a_struct_by_position() -> None:
    wanted = pa.struct([("no", pa.float64()), ("yes", pa.float64())])
    assert to_array(np.array([[0.25, 0.75]]), wanted, 1).to_pylist() == [{"no": 0.25, "yes": 0.75}]


def test_times_without_a_zone_are_the_sessions() -> None:
    array = to_array(pd.Series([pd.Timestamp("2024-07-01 12:00")]), pa.timestamp("us", "UTC"), 1, zone="Europe/Berlin")
    assert array.to_pylist() == [dt.datetime(2024, 7, 1, 10, tzinfo=dt.timezone.utc)]


@pytest.mark.parametrize(("result", "wanted"), [(["a"], pa.float64()), (np.array(["a"]), pa.int64()), ([2**40], pa.int32())])
def test_what_does_not_fit_is_refused_with_the_type(result: Any, wanted: pa.DataType) -> None:
    with pytest.raises(InvalidInput, match=str(wanted)):
        to_array(result, wanted, 1)


@pytest.mark.parametrize("result", [[1.0], [1.0, 2.0, 3.0], {"a": [1.0, 2.0], "b": [1.0]}, 1.0])
def test_a_wrong_number_of_predictions_is_refused(result: Any) -> None:
    with pytest.raises(WrongRowCount, match="for 2 rows"):
        to_array(result, pa.float64(), 2)


class Echo(mlflow.pyfunc.PythonModel):
    """Returns its first column; raises where it is negative."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        column = model_input.iloc[:, 0]
        if column.dtype == float and (column < 0).any():
            raise ValueError("negative")
        return column


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_function(tmp_path_factory.mktemp("echo") / "model", Echo())


def calling(folder: str, result: pa.DataType, **more: Any) -> ModelCall:
    return ModelCall(copy=ModelCopy(folder, folder, None, "a model"), names=None, required=0, result=result, **more)


values = st.one_of(
    st.tuples(st.just(pa.float64()), st.lists(st.none() | st.floats(min_value=0))),
    st.tuples(st.just(pa.int64()), st.lists(st.integers(0, 2**53))),
    st.tuples(st.just(pa.string()), st.lists(st.none() | st.text())),
    st.tuples(st.just(pa.bool_()), st.lists(st.booleans())),
    st.tuples(st.just(pa.date32()), st.lists(st.none() | st.dates())),
    st.tuples(st.just(DOUBLES), st.lists(st.lists(st.floats(allow_nan=False)))),
    st.tuples(
        st.just(pa.timestamp("us", "UTC")),
        st.lists(st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1), timezones=st.just(dt.timezone.utc))),
    ),
)


@settings(max_examples=60, deadline=None)
@given(values)
def test_scoring_in_batches_is_single_process_predict(echo: str, typed: tuple[pa.DataType, list[Any]]) -> None:
    kind, rows = typed
    table = pa.table({"x": pa.array(rows, kind)})
    call = calling(echo, kind)
    in_batches = [row for batch in table.to_batches(max_chunksize=3) for row in call.score(pa.table(batch)).to_pylist()]
    single = mlflow.pyfunc.load_model(echo).predict(to_frame(table)) if rows else []
    expected = [None if isinstance(row, float) and math.isnan(row) else row for row in rows]
    assert in_batches == expected
    assert len(single) == len(in_batches)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.floats(-1, 1, allow_nan=False), max_size=40), st.sampled_from(["model", "skip"]))
def test_report_marks_exactly_the_rows_that_fail(echo: str, rows: list[float | None], nulls: Any) -> None:
    table = pa.table({"x": pa.array(rows, pa.float64())})
    found = calling(echo, pa.float64(), on_error="report", nulls=nulls).score(table).to_pylist()
    assert [row["error"] is not None for row in found] == [row is not None and row < 0 for row in rows]
    assert [row["prediction"] for row in found] == [None if row is None or row < 0 else row for row in rows]


def test_a_model_that_cannot_be_loaded_says_where_why_and_what_it_needs(tmp_path: Path) -> None:
    folder = save_function(tmp_path / "model", Echo())
    for file in Path(folder).glob("*.pkl"):
        file.write_bytes(b"cnosuchpackage\nthing\n.")
    copy = ModelCopy("broken", folder, None, "wine version 3", ("nosuchpackage==1.0",))
    broken = ModelCall(copy=copy, names=None, required=0, result=pa.float64(), on_error="report")
    with pytest.raises(InvalidState, match=r"wine version 3 could not be loaded on .*nosuchpackage.*logged with: nosuchpackage==1.0"):
        broken.score(pa.table({"x": [1.0]}))


def test_integers_with_nulls_reach_a_model_without_signature_as_pandas_has_them(echo: str) -> None:
    table = pa.table({"x": pa.array([1, None], pa.int64())})
    assert to_frame(table)["x"].dtype == "float64"
    assert calling(echo, pa.float64()).score(table).to_pylist() == [1.0, None]


def test_the_signature_example_of_the_documentation(tmp_path: Path) -> None:
    folder = save_function(tmp_path / "model", Echo(), infer_signature(NUMBERS[["a"]], NUMBERS["a"]))
    assert calling(folder, pa.float64()).score(pa.table({"a": [1.0, 2.0]})).to_pylist() == [1.0, 2.0]
