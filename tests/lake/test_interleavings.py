"""Whatever two processes do in whichever order, both see all that was acknowledged, by every way of reading."""

from __future__ import annotations

import shutil
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from spark_tracking.address import LakeUri
from spark_tracking.delta.table import Table
from spark_tracking.kinds.rows import rows as project_rows
from spark_tracking.lake import Lake, process_view
from spark_tracking.lake.replay import of_logs
from spark_tracking.lake.tables import EVENTS_LOG, METRICS_LOG
from tests.lake.making import param, points, run_created, tag, what

who = st.sampled_from([0, 1])
RUNS = ("r1", "r2", "r3")
_empty: list[Path] = []


def empty_lake() -> Path:
    """An empty lake to copy; made once."""
    if not _empty:
        root = Path(tempfile.mkdtemp()) / "lake"
        Lake.open(f"delta://{root}", create=True).close()
        Lake._open.clear()
        _empty.append(root)
    return _empty[0]


class TwoProcesses(RuleBasedStateMachine):
    """The model is a plain dictionary: what was written last (tags), first (params), and all points."""

    @initialize(kept=st.sampled_from([1, 3000]), far_behind=st.sampled_from([1, 100]), left_out=st.sampled_from([0, 2**22]))
    def begin(self, kept: int, far_behind: int, left_out: int) -> None:
        self.limits = pytest.MonkeyPatch()
        self.limits.setattr(process_view, "WHOLE_KEPT", kept)
        self.limits.setattr(process_view, "FAR_BEHIND", far_behind)
        self.limits.setattr(process_view, "LEFT_OUT_BYTES", left_out)
        self.limits.setattr(process_view, "WRITERS_PATIENCE", 0.0)
        self.limits.setattr(process_view, "UNFOLDED_BYTES", 200)
        self.root = Path(tempfile.mkdtemp()) / "lake"
        shutil.copytree(empty_lake(), self.root)
        self.lakes = [self._open(), self._open()]
        self.tags: dict[str, dict[str, str]] = {}
        self.params: dict[str, dict[str, str]] = {}
        self.points: dict[str, list[float]] = {}
        self.purged: set[str] = set()
        self.number = 0

    def _open(self) -> Lake:
        return Lake(LakeUri.parse(f"delta://{self.root}"))

    @rule(who=who, run=st.sampled_from(RUNS), count=st.integers(0, 3), creates=st.booleans())
    def write(self, who: int, run: str, count: int, creates: bool) -> None:
        if run in self.purged:
            return
        self.number += 1
        new = run_created(run) if creates or run not in self.tags else []
        values = [float(self.number * 10 + n) for n in range(count)]
        text = str(self.number)
        blocks = [points(run, "m", *values, step=self.number * 10)] if values else []
        self.lakes[who].write([*new, tag(run, "last", text), param(run, "first", text)], blocks)
        self.tags.setdefault(run, {})["last"] = text
        self.params.setdefault(run, {}).setdefault("first", text)
        self.points.setdefault(run, []).extend(values)

    @rule(who=who, run=st.sampled_from(RUNS), count=st.integers(1, 3))
    def log(self, who: int, run: str, count: int) -> None:
        """Metric points alone, as most calls; the writer looks at the run, but not at its points."""
        if run not in self.tags:
            return
        entity = self.lakes[who].get("run", run, points=False)
        assert entity is not None and entity.items("tag") == self.tags[run]
        self.number += 1
        values = [float(self.number * 10 + n) for n in range(count)]
        self.lakes[who].write((), [points(run, "m", *values, step=self.number * 10)])
        self.points[run].extend(values)

    @rule(who=who, run=st.sampled_from(RUNS))
    def purge(self, who: int, run: str) -> None:
        if self.number > 5 and run in self.tags:
            self.lakes[who].purge("run", [run])
            for known in (self.tags, self.params, self.points):
                known.pop(run)
            self.purged.add(run)

    @rule(who=who, what=st.sampled_from(["flush", "refresh", "settle", "rebuild", "compact", "drop_purged", "check"]))
    def maintain(self, who: int, what: str) -> None:
        getattr(self.lakes[who], what)()

    @rule(who=who)
    def vacuum(self, who: int) -> None:
        self.lakes[who].vacuum(keep=timedelta(0))

    @rule(who=who)
    def die_and_be_followed(self, who: int) -> None:
        """As the kernel lets go of a killed process's segment."""
        lake = self.lakes[who]
        lake._journal.own.close()
        if lake._upkeep.background is not None:
            lake._upkeep.background.stop()
        self.lakes[who] = self._open()

    @rule(who=who)
    def look(self, who: int) -> None:
        lake = self.lakes[who]
        found = {entity.id: entity for entity in lake.search("run")}
        assert set(found) == set(self.tags) == set(lake.get_many("run", RUNS))
        assert lake.count("run", "tags['last'] IS NOT NULL") == len(self.tags)
        for run, tags in self.tags.items():
            entity = lake.get("run", run)
            assert entity is not None and what(entity) == what(found[run])
            assert entity.items("tag") == tags and entity.items("param") == self.params[run]
            values = self.points[run]
            assert lake.metric_history(run)["metric_value"].to_pylist() == values
            if values:
                fold = entity.metrics["m"]
                assert (fold.minimum, fold.maximum, fold.latest.value) == (values[0], values[-1], values[-1])

    @rule(who=who)
    def scan(self, who: int) -> None:
        rows = self.lakes[who].scan("runs_latest", ["run_id", "tags"]).read_all().to_pylist()
        assert {row["run_id"]: dict(row["tags"]) for row in rows} == self.tags
        seen = self.lakes[who].scan("run_metrics_history", ["run_id", "metric_value"]).read_all().to_pylist()
        for run, values in self.points.items():
            assert sorted(row["metric_value"] for row in seen if row["run_id"] == run) == values

    def teardown(self) -> None:
        if not hasattr(self, "lakes"):
            return
        for who in (0, 1):
            self.look(who)
        self.lakes[0].settle()
        root = self.lakes[0].uri.root
        rebuilt = of_logs(Table(root, EVENTS_LOG), Table(root, METRICS_LOG))
        truth = project_rows("run", [e for (kind, _), e in rebuilt.items() if kind == "run"]).drop_columns(["state"])
        base = self.lakes[1]._view.bases["run"]
        base.update()
        assert base.select(None, truth.column_names).sort_by("run_id").to_pylist() == truth.to_pylist()
        assert self.lakes[1].check().problems == []
        for lake in self.lakes:
            lake.close()
        shutil.rmtree(self.root.parent)
        self.limits.undo()


TestTwoProcesses = TwoProcesses.TestCase
TestTwoProcesses.settings = settings(deadline=None, max_examples=5, stateful_step_count=12)
