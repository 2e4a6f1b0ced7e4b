"""The lake's model registry answers each call as MLflow's SQL registry does, messages included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag
from mlflow.exceptions import MlflowException
from packaging.version import Version

from spark_tracking.store.registry import LakeRegistryStore
from spark_tracking.store.tracking import LakeTrackingStore

pytestmark = pytest.mark.skipif(Version(mlflow.__version__) < Version("3.17"), reason="the oracle is the newest MLflow's SQL store")
Script = Callable[[Any], None]
PROMPT = "mlflow.prompt.is_prompt"


def test_registered_models_live_from_creation_to_deletion(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        s.create_registered_model("m", [RegisteredModelTag("k", "v"), RegisteredModelTag("k", "w")], "words")
        s.create_registered_model("m")
        for name in ("", None, "a/b", "a:b"):
            s.create_registered_model(name)
        s.create_registered_model("tagged", [RegisteredModelTag("k" * 251, "v")])
        s.create_registered_model("tagged", [RegisteredModelTag("k", "v" * 100_001)])
        s.get_registered_model("m")
        s.get_registered_model("nope")
        s.update_registered_model("m", "other words")
        s.update_registered_model("m", None)
        s.update_registered_model("nope", "x")
        s.set_registered_model_tag("m", RegisteredModelTag("k2", 'it\'s "new" 🚀'))
        s.set_registered_model_tag("nope", RegisteredModelTag("k2", "v"))
        s.set_registered_model_tag("m", RegisteredModelTag("", "v"))
        s.delete_registered_model_tag("m", "k")
        s.delete_registered_model_tag("m", "k")
        s.delete_registered_model_tag("nope", "k")
        s.create_model_version("m", "file:///x", "run", [ModelVersionTag("a", "b")], "link", "about it")
        s.create_model_version("m", "file:///y")
        s.set_registered_model_alias("m", "champion", "1")
        s.create_registered_model("taken")
        s.rename_registered_model("m", "taken")
        for name in ("", None, "a/b"):
            s.rename_registered_model("m", name)
        s.rename_registered_model("nope", "x")
        s.rename_registered_model("m", "m")
        s.rename_registered_model("m", "new")
        s.get_registered_model("m")
        s.get_registered_model("new")
        s.get_model_version("new", 1)
        s.get_model_version("m", 1)
        s.create_model_version("new", "file:///z")
        s.get_model_version_by_alias("new", "champion")
        s.rename_registered_model("new", "m")
        s.get_model_version("m", "3")
        s.delete_registered_model("m")
        s.delete_registered_model("m")
        s.get_registered_model("m")
        s.get_model_version("m", 1)
        s.create_registered_model("m")
        s.get_registered_model("m")
        s.create_model_version("m", "file:///again")

    on_both(script)


def test_model_versions_live_from_creation_to_deletion(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        s.create_model_version("nope", "file:///x")
        s.create_registered_model("m")
        s.create_model_version("m", "file:///x", "run", [ModelVersionTag("k", "v"), ModelVersionTag("k", "w")], "link", "words")
        s.create_model_version("m", "file:///x", tags=[ModelVersionTag("k", None)])
        for _ in range(3):
            s.create_model_version("m", "s3://bucket/x")
        s.create_model_version("m", "models:/m/1")
        s.get_model_version_download_uri("m", 5)
        s.create_model_version("m", "models:/m/77")
        s.get_model_version("m", "1")
        for version in ("77", 0, "x"):
            s.get_model_version("m", version)
        s.get_model_version("nope", 1)
        s.update_model_version("m", 1, "new words")
        s.update_model_version("m", 1)
        s.update_model_version("m", 77, "x")
        s.set_model_version_tag("m", 1, ModelVersionTag("k2", "it's"))
        s.set_model_version_tag("m", 1, ModelVersionTag("k", "new"))
        s.set_model_version_tag("m", "x", ModelVersionTag("k", "new"))
        s.set_model_version_tag("m", 77, ModelVersionTag("k", "new"))
        s.delete_model_version_tag("m", 1, "k")
        s.delete_model_version_tag("m", 1, "k")
        s.delete_model_version_tag("m", 77, "k")
        s.get_model_version("m", 1)
        for alias, version in (("a", 1), ("b", "1"), ("a", 2), ("latest", 1), ("v1", 1), ("bad name", 1), ("c", 77), ("d", "x")):
            s.set_registered_model_alias("m", alias, version)
        for alias in ("a", "b", "none", "latest", "Latest"):
            s.get_model_version_by_alias("m", alias)
        s.delete_registered_model_alias("m", "a")
        s.delete_registered_model_alias("m", "a")
        s.delete_registered_model_alias("nope", "a")
        s.get_registered_model("m")
        s.delete_model_version("m", 1)
        s.delete_model_version("m", 1)
        s.get_model_version("m", 1)
        s.get_registered_model("m")
        s.search_model_versions()
        s.delete_model_version("m", 5)
        s.create_model_version("m", "file:///next")
        s.get_model_version_by_alias("m", "latest")

    on_both(script)


def test_stages_move_and_archive(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        s.create_registered_model("m")
        s.get_latest_versions("m")
        for _ in range(5):
            s.create_model_version("m", "file:///x")
        for version, stage, archive in (
            *((1, "Staging", False), (2, "staging", False), (3, "Production", True), (4, "PRODUCTION", True), (5, "Archived", False)),
            *((5, "Archived", True), (1, "nonsense", False), (77, "Staging", False), (1, "None", True), (2, "production", False)),
        ):
            s.transition_model_version_stage("m", version, stage, archive)
            latest = s.get_latest_versions("m")
            s.seen[-1] = ("latest", sorted(v["ModelVersion"]["_version"] for v in s.plain(latest)))
        for stages in (["Production"], ["staging", "None"], ["nonsense"], []):
            s.get_latest_versions("m", stages)
            if not isinstance(s.seen[-1][1], str):
                s.seen[-1] = ("latest", sorted(v["ModelVersion"]["_version"] for v in s.seen[-1][1]))
        s.get_latest_versions("nope")
        for version in range(1, 6):
            s.get_model_version("m", version)

    on_both(script)


def test_registered_models_are_searched_ordered_and_paged(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        for name in ("Alpha", "beta", "Gamma%", "it's", "delta"):
            s.create_registered_model(name, [RegisteredModelTag("t", name.lower())])
            s.create_model_version(name, "file:///x")
        s.create_registered_model("asking", [RegisteredModelTag(PROMPT, "true")])
        s.create_registered_model("asking")
        s.create_registered_model("Alpha", [RegisteredModelTag(PROMPT, "true")])
        for text in (
            *(None, "", "name = 'Alpha'", "name != 'Alpha'", "name LIKE 'a%'", "name ilike 'a%'", 'name = "it\'s"', "name LIKE '%\\%'"),
            *(
                "name IN ('Alpha', 'beta')",
                "name NOT IN ('Alpha')",
                "tags.t = 'alpha'",
                "tag.t != 'alpha'",
                "tags.t ILIKE '%A' AND name != 'delta'",
            ),
            *(
                "tags.t = 'alpha' AND tags.t = 'beta'",
                f"tags.`{PROMPT}` = 'true'",
                f"tags.`{PROMPT}` != 'true'",
                f"tags.`{PROMPT}` = 'false'",
            ),
            *("run_id = 'x'", "name > 'a'", "name", "foo.x = '1'", "name = 'a' OR name = 'b'", "name IN ()", "name = 1"),
        ):
            s.search_registered_models(text)
        for order in (["name DESC"], ["name asc"], ["foo"], ["name", "name DESC"], ["timestamp BOTH"]):
            s.search_registered_models(order_by=order)
        first = s.search_registered_models(max_results=2)
        second = s.search_registered_models(max_results=2, page_token=first.token)
        s.search_registered_models(max_results=2, page_token=second.token)
        s.search_registered_models(max_results=1001)
        s.search_registered_models(page_token="nonsense")

    on_both(script)


def test_model_versions_are_searched_ordered_and_paged(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        for name in ("one", "Two", "asking"):
            s.create_registered_model(name)
            for number in range(3):
                s.create_model_version(name, f"file:///{name}/{number}", f"run{number}", [ModelVersionTag("t", str(number))])
        s.set_model_version_tag("asking", 1, ModelVersionTag(PROMPT, "true"))
        s.delete_model_version("Two", 2)
        by_name = ["name", "version_number"]
        for text in (
            *(
                None,
                "name = 'one'",
                "name LIKE 'T%'",
                "name ILIKE 't%'",
                "name IN ('one', 'Two')",
                "run_id = 'run1'",
                "run_id IN ('run1', 'run2')",
            ),
            *("source_path = 'file:///one/0'", "source_path LIKE '%/1'", "version_number > '1'", "version_number = '2'", "tags.t = '1'"),
            *("tags.t != '1' AND name = 'one'", f"tags.`{PROMPT}` = 'true'", f"tags.`{PROMPT}` != 'true'"),
            *(
                "source_path IN ('x')",
                "version_number LIKE '1'",
                "version_number = 'x'",
                "foo = 'x'",
                "name > 'a'",
                "name = 'a' OR name = 'b'",
            ),
        ):
            s.search_model_versions(text, order_by=by_name)
        for order in (["version_number DESC", "name"], ["name DESC"], ["foo"], ["name", "name"], ["creation_timestamp BOTH"]):
            s.search_model_versions("name = 'one'", order_by=order)
        first = s.search_model_versions(max_results=3, order_by=by_name)
        s.search_model_versions(max_results=3, order_by=by_name, page_token=first.token)
        for size in (0, "x", 200_001, None):
            s.search_model_versions(max_results=size)

    on_both(script)


def test_versions_are_copied_between_models(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        s.create_registered_model("from")
        version = s.create_model_version("from", "file:///x", "run", [ModelVersionTag("k", "v")], "link", "words")
        s.copy_model_version(version, "to")
        s.copy_model_version(version, "to")
        s.get_model_version_download_uri("to", 2)
        s.get_registered_model("to")

    on_both(script)


def test_a_lake_made_by_the_registry_has_the_said_artifact_root(store: LakeTrackingStore, registry: LakeRegistryStore) -> None:
    registry.create_registered_model("wine")
    assert store.get_experiment("0").artifact_location == "file:///artifacts/0"


def test_prompts_are_registered_models_with_tags(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        s.create_prompt("greeting", "says hello", {"team": "a"})
        s.create_prompt("greeting")
        s.create_prompt("bad/name")
        s.create_registered_model("plain")
        s.create_registered_model("greeting")
        s.create_prompt("plain")
        s.create_prompt_version("greeting", "Hello {{name}}", "first", {"author": "me"})
        s.create_prompt_version("greeting", [{"role": "user", "content": "Hi {{name}}"}], response_format={"type": "object"})
        s.create_prompt_version("nobody", "x")
        for version in (1, "2", 3, "champion"):
            s.get_prompt_version("greeting", version)
        s.set_prompt_alias("greeting", "champion", 1)
        s.get_prompt_version_by_alias("greeting", "champion")
        s.get_prompt_version("plain", 1)
        for name in ("greeting", "plain", "nobody"):
            s.get_prompt(name)
        s.set_prompt_tag("greeting", "k", "v")
        s.delete_prompt_tag("greeting", "team")
        s.set_prompt_version_tag("greeting", 2, "k", "v")
        s.delete_prompt_version_tag("greeting", 1, "author")
        for filter in (None, "name = 'greeting'", "name LIKE 'g%'", "tags.k = 'v'", "experiment_id = '1'"):
            s.search_prompts(filter)
        for name in ("greeting", "plain", "nobody"):
            s.search_prompt_versions(name)
        s.search_prompt_versions("greeting", max_results=1)
        s.search_registered_models()
        s.search_model_versions()
        s.delete_prompt_alias("greeting", "champion")
        s.delete_prompt_version("greeting", 1)
        s.get_prompt_version("greeting", 1)
        s.search_prompt_versions("greeting")
        s.delete_prompt("greeting")
        s.get_prompt("greeting")
        s.search_prompts()

    on_both(script)


def test_a_version_finds_its_logged_model_on_the_active_server_while_the_registry_is_a_lake(
    registry: LakeRegistryStore, sqlite_template: Path, tmp_path: Path
) -> None:
    (tmp_path / "active.db").write_bytes(sqlite_template.read_bytes())
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/active.db")
    client = mlflow.MlflowClient()
    run_id = client.create_run("0").info.run_id
    model_id = client.create_logged_model("0", source_run_id=run_id).model_id
    registry.create_registered_model("m")
    assert registry.create_model_version("m", "path/to/source", model_id=model_id).run_id == run_id
    version = registry.create_model_version("m", f"models:/{model_id}")
    assert version.run_id == run_id and registry.get_model_version_download_uri("m", 2).endswith(f"/models/{model_id}/artifacts")
    with pytest.raises(MlflowException, match="'m-unknown' not found"):
        registry.create_model_version("m", "path/to/source", model_id="m-unknown")
    assert [v.version for v in registry.search_model_versions("name = 'm'")] == [2, 1]
