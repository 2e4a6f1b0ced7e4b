"""Journal records as columns of the two logs, and columns of the metrics log folded into entities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate, chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from spark_tracking.kinds.shapes import TIMESTAMP
from spark_tracking.kinds.state import COUNTER_BITS, Entity, Event, MetricFold, ModelPoint, Point, Stamp
from spark_tracking.lake.journal_record import PackedBlock, RawBlock, Record
from spark_tracking.lake.tables import EVENTS, RUN_METRICS_HISTORY

_IN_COLUMNS_BYTES = 8192
"""Packed points beyond this size (some 300) are folded by Arrow rather than one by one."""
_PIECE = 4096
_Column = Any  # pyarrow.Array or ChunkedArray, which have no types


def event_rows(records: Iterable[tuple[str, Record]]) -> pa.Table:
    """The rows of `events` that records (with their writers) hold."""
    stamps: list[int] = []
    writers: list[str] = []
    events: list[Event] = []
    for writer, record in records:
        events += record.events
        stamps += [record.hlc] * len(record.events)
        writers += [writer] * len(record.events)
    columns = list(zip(*events)) or [()] * 5
    hlc = pa.array(stamps, pa.int64())
    texts = [pa.array(column, pa.string()) for column in columns]
    return pa.Table.from_arrays([hlc, pa.array(writers, pa.string()), wall_time(hlc), *texts], schema=EVENTS)


def metric_rows(records: Iterable[tuple[str, Record]]) -> pa.Table:
    """The rows of `run_metrics_history` that records hold, those of a run side by side."""
    blocks = [(record.hlc, block, block.raw()) for _, record in records for block in record.blocks]
    blocks.sort(key=lambda entry: entry[1].run_id)
    ends = pa.array(accumulate(len(raw.names) for _, _, raw in blocks), pa.int32())
    total = ends[-1].as_py() if blocks else 0

    def spread(values: Iterable[object], type_: pa.DataType) -> pa.Array:
        return pc.run_end_decode(pa.RunEndEncodedArray.from_arrays(ends, pa.array(values, type_)))

    names, values, times, steps = _points([raw for _, _, raw in blocks])
    hlc = spread((stamp for stamp, _, _ in blocks), pa.int64())
    series = _array(chain.from_iterable(_series_of(block, raw.names) for _, block, raw in blocks), pa.uint64())
    columns = {
        "account_id": pa.nulls(total, pa.string()),
        "insert_time": wall_time(hlc),
        "record_id": record_ids(series, times, steps, values),
        "workspace_id": pa.nulls(total, pa.string()),
        "experiment_id": spread((raw.experiment_id for _, _, raw in blocks), pa.string()),
        "run_id": spread((block.run_id for _, block, _ in blocks), pa.string()),
        "metric_name": names,
        "metric_time": _to_time(times),
        "metric_step": steps,
        "metric_value": values,
        "model_id": spread((block.model_id for _, block, _ in blocks), pa.string()),
        "dataset_name": spread((raw.dataset_name for _, _, raw in blocks), pa.string()),
        "dataset_digest": spread((raw.dataset_digest for _, _, raw in blocks), pa.string()),
        "hlc": hlc,
    }
    return pa.Table.from_arrays(list(columns.values()), schema=RUN_METRICS_HISTORY)


def record_ids(series: pa.Array, times: pa.Array, steps: pa.Array, values: pa.Array) -> pa.Array:
    """Names of points by their content, so that a retried call counts once.

    A 64-bit hash of run, metric, model, time, step and value: each part is mixed in by the finaliser of SplitMix64
    (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014), in columns. Unique with what identifies
    its series, which is how readers remove duplicates.
    """
    mixed = series
    for column in (times, steps, values):
        mixed = _mix(pc.bit_wise_xor(mixed, column.view(pa.uint64())))
    return mixed.cast(pa.string())


def record_ids_of(rows: pa.Table) -> pa.Array:
    """The `record_id`s that rows of the metrics log must have; each series is hashed once."""
    codes: pa.Array | None = None
    names: list[list[str | None]] = []
    for name in ("run_id", "metric_name", "model_id"):
        column = rows[name].combine_chunks().dictionary_encode(null_encoding="encode")
        own, names = column.indices.cast(pa.int64()), [*names, column.dictionary.to_pylist()]
        codes = own if codes is None else pc.add(pc.multiply(codes, len(names[-1])), own)
    distinct = pc.unique(codes)
    hashes = []
    for code in distinct.to_pylist():
        code, model = divmod(code, len(names[2]))
        run, metric = divmod(code, len(names[1]))
        hashes.append(_series(names[0][run] or "", names[1][metric] or "", names[2][model]))
    series = pa.array(hashes, pa.uint64()).take(pc.index_in(codes, distinct))
    times = _to_milliseconds(rows["metric_time"]).combine_chunks()
    return record_ids(series, times, rows["metric_step"].combine_chunks(), rows["metric_value"].combine_chunks())


def events_of(rows: pa.Table) -> Iterator[tuple[Stamp, Event]]:
    """The events that stand in rows of the log."""
    columns = [rows[name].to_pylist() for name in ("hlc", "writer", "kind", "id", "field", "key", "value")]
    for hlc, writer, *event in zip(*columns):
        yield Stamp(hlc, writer), Event(*event)


def fold_metric_rows(rows: pa.Table) -> Iterator[tuple[str, str, MetricFold]]:
    """Rows of the metrics log folded per run and metric: (run id, metric name, fold)."""
    times = _to_milliseconds(rows["metric_time"])
    yield from _fold(rows["run_id"], rows["metric_name"], rows["metric_step"], times, rows["metric_value"])


def fold_blocks(entity: Entity, blocks: Sequence[PackedBlock]) -> None:
    """Fold points of journals into the run or logged model that they belong to; many of them in columns."""
    if entity.purged is not None:
        return
    if entity.kind != "run" or sum(map(len, blocks)) < _IN_COLUMNS_BYTES:
        for block in blocks:
            entity.fold_block(block.unpack())
        return
    names, values, times, steps = _points([block.raw() for block in blocks])
    for _, name, fold in _fold(pa.nulls(len(names), pa.string()), names, steps, times, values):
        entity.fold_metric(name, fold)


def _fold(runs: _Column, names: _Column, steps: _Column, times: _Column, values: _Column) -> Iterator[tuple[str, str, MetricFold]]:
    if not len(names):
        return
    nan = pc.is_nan(values)
    # NaN sorts as 0 and after a real 0, as Point.beats has it
    columns = {"step": steps, "time": times, "rank": pc.if_else(nan, 0.0, values), "nan": nan}
    table = pa.table({**columns, "run": runs, "name": names, "value": values})
    order = [("step", "ascending"), ("time", "ascending"), ("rank", "ascending"), ("nan", "descending")]
    folds = (
        table.sort_by(order)
        .group_by(["run", "name"], use_threads=False)
        .aggregate([("value", "min"), ("value", "max"), ("step", "last"), ("time", "last"), ("value", "last")])
    )
    wanted = ("run", "name", "value_min", "value_max", "step_last", "time_last", "value_last")
    for run, name, low, high, step, time, value in zip(*(folds[n].to_pylist() for n in wanted)):
        yield run, name, MetricFold(low, high, Point(step, time, value))


def _points(blocks: Sequence[RawBlock]) -> tuple[pa.Array, pa.Array, pa.Array, pa.Array]:
    """Names, values, times (ms) and steps of all points of the blocks."""
    names = _array(chain.from_iterable(raw.names for raw in blocks), pa.string())

    def numbers(packed: Iterable[bytes], type_: pa.DataType) -> pa.Array:
        return pa.Array.from_buffers(type_, len(names), [None, pa.py_buffer(b"".join(packed))])

    values = numbers((raw.values for raw in blocks), pa.float64())
    times = numbers((raw.times for raw in blocks), pa.int64())
    return names, values, times, numbers((raw.steps for raw in blocks), pa.int64())


def model_points(rows: pa.Table) -> Iterator[tuple[str, ModelPoint, float]]:
    """Those rows of the metrics log that were logged for a model: (model id, point, value)."""
    mine = rows.filter(pc.is_valid(rows["model_id"]))
    if mine.num_rows == 0:
        return
    times = _to_milliseconds(mine["metric_time"]).to_pylist()
    names = ("model_id", "metric_name", "run_id", "dataset_name", "dataset_digest", "metric_step", "metric_value")
    columns = [mine[name].to_pylist() for name in names]
    for (model, name, run, dataset, digest, step, value), time in zip(zip(*columns), times):
        yield model, ModelPoint(name, run, dataset, digest, step, time), value


def fold_rows(entities: dict[tuple[str, str], Entity], events: pa.Table, metrics: pa.Table) -> None:
    """Fold rows of both logs into `entities`, which makes what is missing."""
    for stamp, event in events_of(events):
        entities[event.kind, event.id].fold(stamp, event.field, event.key, event.value)
    for run, name, fold in fold_metric_rows(metrics):
        entity = entities["run", run]
        if entity.purged is None:
            entity.fold_metric(name, fold)
    for model, point, value in model_points(metrics):
        entity = entities["logged_model", model]
        if entity.purged is None:
            entity.fold_points([(point, value)])


def distinct_points(points: pa.Table, owners: Sequence[str]) -> pa.Table:
    """Points, each once, ordered by the `owners`, time, step and value (NaN last).

    Args:
        owners: the text columns that tell apart whose points they are.
    """
    if points.num_rows < 2:
        return points
    numbers = ("metric_time", "metric_step", "metric_value", "record_id")
    keys = pa.table({**{name: _ranks(points[name]) for name in owners}, **{name: points[name] for name in numbers}})
    indices = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names[:-1]])
    ordered = keys.take(indices)
    repeated = None
    for name in (*owners, "metric_step", "record_id"):
        column = ordered[name].combine_chunks()
        same = pc.equal(column.slice(1), column.slice(0, len(column) - 1))
        repeated = same if repeated is None else pc.and_(repeated, same)
    first = pa.concat_arrays([pa.array([True]), pc.invert(repeated)])
    return points.take(indices.filter(first))


def _ranks(texts: _Column) -> pa.Array:
    """The place of each text among the distinct ones, which sorts faster than texts."""
    texts = texts.combine_chunks()
    distinct = pc.unique(texts)
    order = pc.array_sort_indices(distinct).to_pylist()
    return pa.array(sorted(range(len(order)), key=order.__getitem__), pa.int32()).take(pc.index_in(texts, distinct))


def among(column: str, values: Sequence[str]) -> pc.Expression:
    """The filter that a column is one of these texts; with its range, by which files' statistics rule them out."""
    field = pc.field(column)
    if len(values) == 1:
        return field == values[0]
    return (field >= min(values)) & (field <= max(values)) & field.isin(list(values))


def _series_of(block: PackedBlock, names: list[str]) -> list[int]:
    hashes = {name: _series(block.run_id, name, block.model_id) for name in set(names)}
    return [hashes[name] for name in names]


def _array(values: Iterable[object], type_: pa.DataType) -> pa.Array:
    """An array made piece by piece: pyarrow holds Python's lock meanwhile, half a second for a million texts, and a writer waits."""
    values, parts = iter(values), [pa.array([], type_)]
    while piece := list(islice(values, _PIECE)):
        parts.append(pa.array(piece, type_))
    return pa.concat_arrays(parts)


@lru_cache(maxsize=65536)
def _series(run_id: str, name: str, model_id: str | None) -> int:
    text = "\0".join((run_id, name, model_id or ""))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(x: pa.Array) -> pa.Array:
    def u64(number: int) -> pa.Scalar:
        return pa.scalar(number, pa.uint64())

    x = pc.multiply(pc.bit_wise_xor(x, pc.shift_right(x, u64(30))), u64(0xBF58476D1CE4E5B9))
    x = pc.multiply(pc.bit_wise_xor(x, pc.shift_right(x, u64(27))), u64(0x94D049BB133111EB))
    return pc.bit_wise_xor(x, pc.shift_right(x, u64(31)))


def wall_time(hlc: _Column) -> _Column:
    """The wall times of stamps, as `insert_time` has them."""
    return _to_time(pc.shift_right(hlc, COUNTER_BITS))


def _to_time(ms: pa.Array) -> pa.Array:
    return pc.multiply(ms, 1000).cast(TIMESTAMP)


def _to_milliseconds(time: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.divide(time.cast(pa.int64()), 1000)
