"""A purge beside other processes: what is purged is gone for everyone, and nobody is told to rebuild anything."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta

import pytest

from spark_tracking.lake import Lake
from tests.lake.making import points, run_created, tag

Another = Callable[[], Lake]


def test_a_reader_that_knew_a_run_s_creation_sees_it_purged_when_others_still_log_into_it(lake: Lake, another: Another) -> None:
    reader, late = another(), another()
    lake.write(run_created("r1"), [points("r1", "m", 1.0)])
    assert reader.get("run", "r1") is not None
    lake.purge("run", ["r1"])
    late.write([tag("r1", "late", "x")])
    lake.refresh()
    late.write([tag("r1", "later", "x")])
    assert reader.get("run", "r1") is None
    assert reader.check().problems == []


def test_a_new_process_sees_a_run_purged_whose_creation_its_living_writer_s_journal_still_has(lake: Lake, another: Another) -> None:
    late = another()
    lake.write(run_created("r1"))  # no points: its segment is read from the beginning by whoever opens the lake
    lake.purge("run", ["r1"])
    lake.drop_purged()  # the log moves on behind what the tables cover
    lake.compact()
    late.write([tag("r1", "late", "x")], [points("r1", "m", 1.0)])
    assert another().get("run", "r1") is None
    assert another().check().problems == []


@pytest.mark.parametrize("seed", [5, 14, 16, 38])
def test_whatever_happens_around_a_purge_nobody_sees_more_or_less_than_the_logs_say(lake: Lake, another: Another, seed: int) -> None:
    choose = random.Random(seed)
    lakes = [lake, another(), another()]
    lake.write([*run_created("r1"), *run_created("r2")], [points("r1", "m", 1.0), points("r2", "m", 1.0)])
    calls: dict[str, Callable[[Lake], object]] = {
        "tag": lambda it: it.write([tag("r1", str(choose.random()), "x")]),
        "log": lambda it: it.write([tag("r3", "t", "x")], [points("r1", "m", choose.random()), points("r3", "m", 1.0)]),
        "create": lambda it: it.write(run_created("r3")),
        "look": lambda it: it.get_many("run", ["r1", "r2", "r3"]),
        "flush": Lake.flush,
        "refresh": Lake.refresh,
        "drop": Lake.drop_purged,
        "compact": Lake.compact,
        "vacuum": lambda it: it.vacuum(timedelta(0)),
    }
    steps = choose.choices(list(calls), k=12)
    steps[choose.randrange(3, 9)] = "purge"
    for step in steps:
        if step == "purge":
            choose.choice(lakes).purge("run", ["r1", "r3"])
            del calls["create"]
        elif step in calls:
            calls[step](choose.choice(lakes))
    for seen in (*lakes, another()):
        assert seen.check().problems == [], steps
