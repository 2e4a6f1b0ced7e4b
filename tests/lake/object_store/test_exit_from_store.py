"""A process that has read a lake on an object store ends as it should, too."""

from __future__ import annotations

import signal

import pytest

from tests.lake.test_exit import ALL, PROPER, codes, forked, leave


@pytest.mark.slow
@pytest.mark.parametrize("what", ALL)
def test_a_hundred_processes_that_read_an_object_store_end_well(cloud_uri: str, what: str) -> None:
    assert leave(cloud_uri, "fill")[0] == -signal.SIGKILL
    assert codes(cloud_uri, what, 5) + forked(cloud_uri, what, 95) == {PROPER.get(what, 0): 100}
