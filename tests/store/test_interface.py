"""The stores have an answer for each method of the installed MLflow's interface, and it is theirs."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.abstract_store import AbstractStore as AbstractRegistry
from mlflow.store.tracking.abstract_store import AbstractStore as AbstractTracking

from spark_tracking.store import registry, tracking, unsupported
from spark_tracking.store.registry import LakeRegistryStore
from spark_tracking.store.tracking import LakeTrackingStore

PAIRS = [(LakeTrackingStore, AbstractTracking, tracking.INHERITED), (LakeRegistryStore, AbstractRegistry, registry.INHERITED)]
METHODS = [
    pytest.param(ours, base, inherited, name, id=f"{ours.__name__}.{name}")
    for ours, base, inherited in PAIRS
    for name in dir(base)
    if not name.startswith("__") and callable(getattr(base, name))
]
WITHOUT_DATA = [
    (ours, name)
    for ours, _, _, name in (p.values for p in METHODS)
    if getattr(ours, name).__module__ == unsupported.__name__  # type: ignore[attr-defined]
]


@pytest.mark.parametrize(("ours", "base", "inherited", "name"), METHODS)
def test_each_method_is_overridden_or_listed_as_inherited(ours: type, base: type, inherited: frozenset[str], name: str) -> None:
    own = getattr(ours, name)
    overridden = own is not getattr(base, name) and own.__module__.startswith("spark_tracking.")
    served_by_override = name == "search_runs" or overridden
    assert served_by_override != (name in inherited)


@pytest.mark.parametrize(("ours", "base", "inherited", "name"), METHODS)
def test_each_overridden_method_takes_what_the_interface_gives(ours: type, base: type, inherited: frozenset[str], name: str) -> None:
    own, theirs = (inspect.signature(getattr(cls, name)).parameters for cls in (ours, base))
    if any(p.kind is p.VAR_POSITIONAL for p in own.values()):
        return
    assert [p for p in theirs if p not in own] == []


def test_only_things_beyond_tracking_and_registry_have_no_data() -> None:
    words = ("trace", "span", "assessment", "scor", "dataset", "prompt", "webhook", "gateway", "endpoint", "secret", "budget", "guardrail")
    words += ("mcp", "issue", "label_schema", "review_queue", "user_queue", "session")
    assert [name for _, name in WITHOUT_DATA if not any(word in name for word in words)] == []
    assert len(WITHOUT_DATA) > 20


def test_reads_are_quiet_and_writes_say_what_is_missing_and_what_to_use(store: LakeTrackingStore, registry: LakeRegistryStore) -> None:
    quiet, missing, refused = [], [], {}
    for ours, name in WITHOUT_DATA:
        method: Any = getattr(store if ours is LakeTrackingStore else registry, name)
        try:
            quiet.append((name, method()))
        except unsupported.MlflowNotImplementedException as error:
            refused[name] = error
        except MlflowException as error:
            missing.append((name, error.error_code))
    assert {error.get_http_status_code() for error in refused.values()} == {501}
    assert all(name in error.message and "MLflow server with an SQL backend" in error.message for name, error in refused.items())
    assert {code for _, code in missing} == {"RESOURCE_DOES_NOT_EXIST"}
    assert [n for n, answer in quiet if answer and answer != ([], None) and not n.startswith("calculate_")] == []
    assert {"search_traces", "list_webhooks"} <= {name for name, _ in quiet}
    assert all(name.startswith("get_") for name, _ in missing)
    writes = ("create_", "set_", "update_", "delete_", "register_", "link_", "log_", "start_")
    assert [name for name, _ in (*quiet, *missing) if name.startswith(writes)] == []
    assert {"start_trace", "create_webhook"} <= set(refused)
