"""State is a set: whatever the order and however often changes are seen, the same changes make the same state."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_tracking.kinds.rows import rows as project_rows
from spark_tracking.kinds.state import Entity, Event, MetricBlock, Stamp
from spark_tracking.lake.journal_record import PackedBlock, Record, decode, encode, pack_block
from spark_tracking.lake.log_rows import event_rows, fold_rows, metric_rows
from spark_tracking.lake.refresh import Folding
from spark_tracking.lake.tables import EVENTS, RUN_METRICS_HISTORY
from tests.lake.making import START, what

KINDS = ("run", "logged_model", "registered_model")
IDS = ("r1", "r2")
# zero's sign is no part of a metric's state, so the strategy makes no negative zeros
VALUES = st.one_of(st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf, -math.inf]), st.floats().map(lambda v: v + 0.0))
TEXTS = st.sampled_from(["", "x", "y", "\U0001f600", "a'b\"c", "z" * 5000])

attributes = st.tuples(st.just("attr"), st.sampled_from(["created", "start_time"]), st.sampled_from([str(START), str(START + 1)]))
stages = st.tuples(st.just("attr"), st.just("lifecycle_stage"), st.sampled_from(["active", "deleted"]))
items = st.tuples(st.sampled_from(["tag", "param"]), st.sampled_from(["k", "l"]), st.one_of(st.none(), TEXTS))
purges = st.sampled_from([("purge", "", None), ("purged_run", "r1", "")])
events = st.builds(
    lambda kind, id, rest: Event(kind, id, *rest),
    st.sampled_from(KINDS),
    st.sampled_from(IDS),
    st.one_of(attributes, stages, items, items, purges),
)


@st.composite
def blocks(draw: st.DrawFn) -> MetricBlock:
    count = draw(st.integers(1, 4))

    def column(values: st.SearchStrategy) -> list:  # type: ignore[type-arg]
        return draw(st.lists(values, min_size=count, max_size=count))

    return MetricBlock(
        draw(st.sampled_from(IDS)),
        "0",
        column(st.sampled_from(["acc", "loss \U0001f600"])),
        column(VALUES),
        column(st.integers(START, START + 2)),
        column(st.integers(-1, 2)),
        draw(st.sampled_from([None, "r1"])),
        draw(st.sampled_from([None, "d"])),
    )


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, Record]]:
    """Calls of two writers, as (writer, record): each stamp is one call's."""
    calls = draw(st.lists(st.tuples(st.sampled_from("vw"), st.lists(events, max_size=4), st.lists(blocks(), max_size=2)), max_size=6))
    hlcs = draw(st.lists(st.integers(1, 9), min_size=len(calls), max_size=len(calls)))
    seen: dict[tuple[int, str], tuple[str, Record]] = {}
    for hlc, (writer, changes, metrics) in zip(hlcs, calls):
        unique = {event[:4]: event for event in changes}
        packed = [PackedBlock(b.run_id, b.model_id, pack_block(b)) for b in metrics]
        seen[hlc, writer] = writer, Record(hlc, 0, list(unique.values()), packed)
    return list(seen.values())


def folded(history: list[tuple[str, Record]]) -> Folding:
    """The state after records in this order."""
    entities = Folding()
    for writer, record in history:
        for kind, id, name, key, value in record.events:
            entities[kind, id].fold(Stamp(record.hlc, writer), name, key, value)
        for block in record.blocks:
            entities["run", block.run_id].fold_block(block.unpack())
            if block.model_id:
                entities["logged_model", block.model_id].fold_block(block.unpack())
    return entities


def whole(entities: Folding) -> dict[tuple[str, str], object]:
    """Everything that stands in entities; purged points and empty entities are the same as none."""
    return {key: content for key, entity in sorted(entities.items()) if (content := what(entity)) != what(Entity(*key))}


def shown(entities: Folding) -> Iterator[str]:
    """The rows that readers see."""
    for kind in KINDS:
        rows = project_rows(kind, [e for (k, _), e in sorted(entities.items()) if k == kind])
        yield repr(rows.drop_columns(["state"]).to_pylist())


@given(histories(), st.data())
@settings(deadline=None, max_examples=60)
def test_any_order_and_duplication_makes_the_same_state(history: list[tuple[str, Record]], data: st.DataObject) -> None:
    expected = folded(history)
    again = data.draw(st.permutations(history + data.draw(st.lists(st.sampled_from(history), max_size=3)) if history else history))
    found = folded(again)
    assert whole(found) == whole(expected)
    assert list(shown(found)) == list(shown(expected))


@given(histories(), st.integers(0, 6), st.integers(0, 6))
@settings(deadline=None, max_examples=60)
def test_parts_merge_to_the_whole_in_any_grouping(history: list[tuple[str, Record]], first: int, second: int) -> None:
    low, high = sorted((min(first, len(history)), min(second, len(history))))
    a, b, c = folded(history[:low]), folded(history[low:high]), folded(history[high:])

    def merged(*parts: Folding) -> Folding:
        result = Folding()
        for part in parts:
            for key, entity in part.items():
                result[key].merge(entity)
        return result

    expected = whole(folded(history))
    assert whole(merged(merged(a, b), c)) == whole(merged(a, merged(b, c))) == expected
    assert whole(merged(c, a, b)) == whole(merged(b, b, c, a, a)) == expected


@given(histories())
@settings(deadline=None, max_examples=60)
def test_state_survives_its_packing(history: list[tuple[str, Record]]) -> None:
    for (kind, id), entity in folded(history).items():
        assert what(Entity.unpack(kind, id, entity.pack())) == what(entity)


@given(histories())
@settings(deadline=None, max_examples=60)
def test_merging_what_is_there_already_changes_nothing_not_even_nan(history: list[tuple[str, Record]]) -> None:
    for (kind, id), entity in folded(history).items():
        both = entity.copy()
        both.merge(Entity.unpack(kind, id, entity.pack()))  # another object for each NaN, as from a table
        assert (both.fields, both.metrics, both.points) == (entity.fields, entity.metrics, entity.points)


@given(histories())
@settings(deadline=None, max_examples=60)
def test_logs_fold_to_the_same_state_as_journals(history: list[tuple[str, Record]]) -> None:
    from_logs = Folding()
    fold_rows(from_logs, event_rows(history), metric_rows(history))
    assert whole(from_logs) == whole(folded(history))


@given(histories())
@settings(deadline=None, max_examples=60)
def test_records_survive_their_bytes(history: list[tuple[str, Record]]) -> None:
    data = b"".join(encode(record.hlc, record.events, record.blocks) for _, record in history)
    found = list(decode(data, 7))
    assert [(r.hlc, r.events) for r in found] == [(r.hlc, r.events) for _, r in history]
    assert [repr([b.unpack() for b in r.blocks]) for r in found] == [repr([b.unpack() for b in r.blocks]) for _, r in history]
    assert not found or found[-1].end == 7 + len(data)


def test_the_schema_of_rows_is_the_tables() -> None:
    assert event_rows([]).schema == EVENTS
    assert metric_rows([]).schema == RUN_METRICS_HISTORY
    assert isinstance(metric_rows([]), pa.Table)
