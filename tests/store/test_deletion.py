"""Deleting a run offers its descendants: as a function and as a command."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from mlflow.entities import RunTag, ViewType

import spark_tracking as st
from spark_tracking.cli import main
from spark_tracking.errors import NotFound
from spark_tracking.store.tracking import LakeTrackingStore


@pytest.fixture
def family(store: LakeTrackingStore) -> list[str]:
    """A grandparent, two parents, a child in the trash with a child of its own, and a stranger."""

    def run(parent: str | None = None) -> str:
        tags = [RunTag("mlflow.parentRunId", parent)] if parent else []
        return str(store.create_run("0", "u", 1, tags, None).info.run_id)

    top = run()
    first, second = run(top), run(top)
    trashed = run(first)
    below = run(trashed)
    store.delete_run(trashed)
    return [top, first, second, trashed, below, run()]


def active(store: LakeTrackingStore) -> set[str]:
    return {r.info.run_id for r in store.search_runs(["0"], "", ViewType.ACTIVE_ONLY)}


def test_a_run_alone_goes_unless_asked(store: LakeTrackingStore, family: list[str], lake_uri: str) -> None:
    assert st.delete_run(family[0], tracking_uri=lake_uri) == [family[0]]
    assert active(store) == {family[1], family[2], family[4], family[5]}


def test_descendants_go_with_it_also_through_a_trashed_child(store: LakeTrackingStore, family: list[str], lake_uri: str) -> None:
    gone = st.delete_run(family[0], descendants=True, tracking_uri=lake_uri)
    assert gone[0] == family[0]
    assert sorted(gone) == sorted([family[0], family[1], family[2], family[4]])
    assert active(store) == {family[5]}


def test_a_dry_run_changes_nothing(store: LakeTrackingStore, family: list[str], lake_uri: str) -> None:
    before = active(store)
    assert len(st.delete_run(family[0], True, lake_uri, dry_run=True)) == 4
    assert active(store) == before


def test_runs_that_are_each_others_parents_end_the_search(store: LakeTrackingStore, family: list[str], lake_uri: str) -> None:
    store.set_tag(family[0], RunTag("mlflow.parentRunId", family[1]))
    assert len(st.delete_run(family[0], descendants=True, tracking_uri=lake_uri)) == 4


def test_an_unknown_run_is_named(store: LakeTrackingStore, family: list[str], lake_uri: str) -> None:
    with pytest.raises(NotFound, match="Run with id=nope not found"):
        st.delete_run("nope", tracking_uri=lake_uri)


def test_the_command_says_what_it_does_and_exits_by_outcome(store: LakeTrackingStore, family: list[str], lake_uri: str) -> None:
    arguments = ["delete", family[0], "--descendants", "--tracking-uri", lake_uri, "--json"]
    dry = CliRunner().invoke(main, ["runs", *arguments, "--dry-run"])
    assert dry.exit_code == 0 and len(json.loads(dry.stdout)) == 4
    assert len(active(store)) == 5
    assert CliRunner().invoke(main, ["runs", *arguments]).exit_code == 0
    assert active(store) == {family[5]}
    failed = CliRunner().invoke(main, ["runs", "delete", "nope", "--tracking-uri", lake_uri])
    assert failed.exit_code == 2 and "Run with id=nope not found" in failed.output
