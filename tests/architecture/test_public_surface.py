"""What users may call is what `__all__` names, and each of it is there and documented."""

from __future__ import annotations

import inspect

import pytest

import spark_tracking as st

PUBLIC = [name for name in st.__all__ if name != "__version__"]


def test_all_holds_the_version_and_no_name_twice() -> None:
    assert st.__version__ and "__version__" in st.__all__
    assert len(set(st.__all__)) == len(st.__all__)


def test_dir_shows_exactly_the_public_surface() -> None:
    assert dir(st) == sorted(st.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_resolves_and_tells_what_it_does_with_an_example(name: str) -> None:
    thing = getattr(st, name)
    assert callable(thing)
    assert "Example" in (inspect.getdoc(thing) or ""), f"{name} has no example in its docstring"


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(AttributeError, match="score_table"):
        st.no_such_thing  # noqa: B018
