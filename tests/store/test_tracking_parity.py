"""The lake answers each call as MLflow's SQL store does: the same fields, the same errors with the same messages.

Where it differs on purpose, a test of its own says so (`test_differences.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlflow
import pytest
from mlflow.entities import (
    Dataset,
    DatasetInput,
    ExperimentTag,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelParameter,
    LoggedModelStatus,
    LoggedModelTag,
    Metric,
    Param,
    RunStatus,
    RunTag,
    ViewType,
)
from packaging.version import Version

pytestmark = pytest.mark.skipif(Version(mlflow.__version__) < Version("3.17"), reason="the oracle is the newest MLflow's SQL store")
Script = Callable[[Any], None]
HOSTILE = ["plain", "it's", 'say "hi"', "back`tick", "semi;colon--", "{'a': 1}", "naïve 🚀", "%_\\", "new\nline", "x" * 5000]


def a_run(store: Any, experiment_id: str = "0", name: str | None = "run", tags: list[RunTag] | None = None, start: int = 1) -> Any:
    return store.create_run(experiment_id, "user", start, tags or [], name)


def test_infinite_and_missing_values_are_the_same_in_every_call(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        run_id, other = a_run(s).info.run_id, a_run(s).info.run_id
        for step, value in enumerate([1.0, math.inf, -math.inf, math.nan, math.inf, 2.0, math.nan, -math.inf]):
            s.log_metric(run_id, Metric("m", value, 10, step))
            s.log_batch(run_id, [Metric("again", value, 10, step), Metric("same time", value, 1, 1)], [], [])
            s.log_metric(run_id, Metric(f"latest {step}", value, 1, 1))
        s.log_metric(other, Metric("m", math.inf, 1, 1))
        s.get_run(run_id)
        s.search_runs(["0"], "", ViewType.ALL, order_by=["metrics.m DESC"])
        for text in ("> 1e308", "< -1e308", "> 0", "<= 0", "!= 5"):
            s.search_runs(["0"], f"metrics.`latest 1` {text} AND metrics.m <= 1", ViewType.ALL)
        for key in ("m", "again", "same time"):
            s.get_metric_history(run_id, key)
            s.get_metric_history(run_id, key, 2)
            s.get_metric_history_bulk([run_id], key, 100)
            s.get_metric_history_bulk_interval([run_id, other], key, 4, None, None)
            s.get_metric_history_bulk_interval([run_id, other], key, 100, 1, 6)
            s.get_metric_history_bulk_interval_from_steps(run_id, key, [1, 2, 3], 10)
        model_id = s.create_logged_model("0", "model", other).model_id
        for key, value in (("above", math.inf), ("below", -math.inf)):
            s.log_metric(other, Metric(key, value, 1, 1, model_id=model_id))
        s.get_logged_model(model_id)
        s.search_logged_models(["0"], order_by=[{"field_name": "metrics.above"}])
        s.search_logged_models(["0"], "metrics.above > 1e308 AND metrics.below < -1e308")

    on_both(script)


def test_the_default_experiment_is_the_oldest_from_the_first_call_on(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        s.create_experiment("first")
        for order in ("creation_time", "creation_time DESC", "last_update_time", "last_update_time DESC"):
            s.search_experiments(order_by=[order])
        s.search_experiments()

    on_both(script)


def test_experiments_live_from_creation_to_deletion(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        s.get_experiment("0")
        s.get_experiment(None)
        id = s.create_experiment("one", tags=[ExperimentTag("k", "v"), ExperimentTag("k2", "")])
        other = s.create_experiment("two", "file:///elsewhere", [])
        s.create_experiment("one")
        for name in ("", None, 7, "n" * 501):
            s.create_experiment(name)
        s.create_experiment("far", "file:///" + "a" * 3000)
        s.create_experiment("tagged", tags=[ExperimentTag("", "v")])
        s.create_experiment("tagged", tags=[ExperimentTag("k" * 300, "v")])
        for name in ("one", "nobody", "ONE"):
            s.get_experiment_by_name(name)
        for missing in ("77", "abc", "1.5"):
            s.get_experiment(missing)
        s.set_experiment_tag(id, ExperimentTag("k", "new"))
        s.set_experiment_tag(id, ExperimentTag("k3", "x" * 5001))
        s.delete_experiment_tag(id, "k2")
        s.delete_experiment_tag(id, "k2")
        s.delete_experiment_tag("77", "k2")
        s.rename_experiment(id, "uno")
        s.rename_experiment(id, "uno")
        s.rename_experiment(id, None)
        s.get_experiment(id)
        run = a_run(s, id)
        trashed = a_run(s, id)
        s.delete_run(trashed.info.run_id)
        s.delete_experiment(id)
        s.delete_experiment(id)
        s.get_experiment(id)
        s.rename_experiment(id, "new")
        s.set_experiment_tag(id, ExperimentTag("k", "v"))
        s.get_run(run.info.run_id)
        a_run(s, id)
        s.create_logged_model(id)
        s.create_experiment("uno")
        s.restore_experiment(other)
        s.restore_experiment(id)
        s.restore_experiment(id)
        s.get_run(trashed.info.run_id)
        s.get_experiment(id)
        s.delete_experiment("77")
        s.restore_experiment("77")
        s.filter_active_experiment_ids(["0", id, "77"])

    on_both(script)


def test_experiments_are_searched_ordered_and_paged(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        ids = [s.create_experiment(name, tags=[ExperimentTag("t", name.lower())]) for name in ("Alpha", "beta", "Gamma%", "delta_1")]
        s.delete_experiment(ids[1])
        for view in (ViewType.ACTIVE_ONLY, ViewType.DELETED_ONLY, ViewType.ALL):
            s.search_experiments(view, order_by=["name"])
        for text in (
            *("name = 'Alpha'", "name != 'Alpha'", "name LIKE 'a%'", "name ILIKE 'a%'", "name LIKE 'Gamma%'", "name LIKE '%\\%'"),
            *("attribute.name = 'Alpha'", "tags.t = 'alpha'", "tags.t != 'alpha'", "tag.t LIKE '%a' AND name ILIKE 'G%'", "tags.x = '1'"),
            *("tags.t IS NULL", "tags.t IS NOT NULL", "tags.x IS NULL AND name = 'Alpha'"),
            *("experiment_id = '1'", "experiment_id IN ('1', '3')", "experiment_id NOT IN ('0')", "experiment_id > '1'"),
            *("creation_time > 0", "last_update_time >= 1 AND creation_time < 10", "creation_time > 1.5", "creation_time = 'x'"),
            *("name > 'a'", "name IN ('a')", "foo = 'x'", "params.x = 'x'", "name = ", "name = 'a' OR name = 'b'", "tags.t > '3'"),
            *("experiment_id = 'x'", "creation_time LIKE '1'", "name = 'a'; name = 'b'"),
        ):
            s.search_experiments(ViewType.ALL, filter_string=text, order_by=["experiment_id"])
        for order in (["name DESC"], ["experiment_id DESC"], ["name ASC", "experiment_id"], ["foo"], ["tags.t"], ["name BOTH"]):
            s.search_experiments(ViewType.ALL, order_by=order)
        for size in (0, -1, None, 50_001):
            s.search_experiments(max_results=size)
        first = s.search_experiments(ViewType.ALL, 2, order_by=["name"])
        second = s.search_experiments(ViewType.ALL, 2, order_by=["name"], page_token=first.token)
        s.search_experiments(ViewType.ALL, 2, order_by=["name"], page_token=second.token)
        s.search_experiments(page_token="nonsense")
        s.search_experiments(page_token="e30=")

    on_both(script)


def test_runs_live_from_creation_to_deletion(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        run = a_run(s, tags=[RunTag("a", "b")])
        id = run.info.run_id
        a_run(s, name=None, tags=[RunTag("mlflow.runName", "tagged")])
        a_run(s, name="one", tags=[RunTag("mlflow.runName", "other")])
        a_run(s, "99")
        a_run(s, "x")
        s.get_run("nope")
        s.update_run_info(id, RunStatus.FINISHED, 1_700_000_000_123, None)
        s.update_run_info(id, None, None, "renamed")
        s.update_run_info(id, RunStatus.RUNNING, None, "")
        s.update_run_info("nope", RunStatus.RUNNING, None, None)
        s.get_run(id)
        s.delete_run(id)
        s.delete_run(id)
        s.get_run(id)
        s.update_run_info(id, RunStatus.FAILED, None, None)
        s.log_metric(id, Metric("m", 1.0, 1, 0))
        s.log_param(id, Param("p", "1"))
        s.set_tag(id, RunTag("t", "1"))
        s.delete_tag(id, "a")
        s.log_batch(id, [], [], [])
        s.log_inputs(id, datasets=[])
        s.log_outputs(id, [])
        s.restore_run(id)
        s.restore_run(id)
        s.get_run(id)
        for call in (s.delete_run, s.restore_run):
            call("nope")

    on_both(script)


def test_params_and_tags_keep_their_rules(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        id = a_run(s).info.run_id
        s.log_param(id, Param("p", "1"))
        s.log_param(id, Param("p", "1"))
        s.log_param(id, Param("p", "2"))
        s.log_param(id, Param("", "2"))
        s.log_param(id, Param("../up", "2"))
        s.log_param(id, Param("k" * 251, "2"))
        s.log_param(id, Param("empty", ""))
        s.log_batch(id, [], [Param("p", "1"), Param("q", "2")], [])
        s.log_batch(id, [Metric("never", 1.0, 1, 0)], [Param("p", "3"), Param("q", "4")], [RunTag("never", "1")])
        s.log_batch(id, [], [Param("d", "1"), Param("d", "1")], [])
        s.log_batch(id, [], [Param(f"n{i}", "1") for i in range(101)], [])
        for number, text in enumerate(HOSTILE):
            s.log_param(id, Param(f"hostile{number}", text))
            s.set_tag(id, RunTag(f"hostile{number}", text))
        s.set_tag(id, RunTag("t", "1"))
        s.set_tag(id, RunTag("t", "2"))
        s.set_tag(id, RunTag("mlflow.runName", "by tag"))
        s.set_tag(id, RunTag("mlflow.runName", ""))
        s.set_tag(id, RunTag(None, "v"))
        s.set_tag(id, RunTag("long", "x" * 9000))
        s.log_batch(id, [], [], [RunTag("t", "3"), RunTag("t", "4"), RunTag("mlflow.runName", "by batch")])
        s.delete_tag(id, "t")
        s.delete_tag(id, "t")
        s.get_run(id)
        for call, what in ((s.log_param, Param("a", "b")), (s.set_tag, RunTag("a", "b"))):
            call("nope", what)

    on_both(script)


def test_metrics_keep_their_history_and_the_latest_point(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        id, other = a_run(s).info.run_id, a_run(s).info.run_id
        points = [(0.5, 3, 1), (0.25, 2, 2), (0.75, 1, 2), (0.75, 1, 2), (-1.0, 5, 0), (9.0, 1, -3), (0.5, 3, 1), (2, 2, 2)]
        for value, time, step in points:
            s.log_metric(id, Metric("m", value, time, step))
            s.get_run(id)
        s.log_batch(id, [Metric("b", float(i % 7), i, i % 5) for i in range(1000)], [], [])
        s.log_batch(
            other, [Metric("m", math.nan, 7, 1), Metric("m", 1.0, 7, 0), Metric("n", math.nan, 1, 1), Metric("n", math.nan, 1, 1)], [], []
        )
        s.log_batch(id, [Metric("b", 1.0, 1, 1)] * 1001, [], [])
        for bad in (
            ("", 1.0, 1, 0),
            ("m", None, 1, 0),
            ("m", "x", 1, 0),
            ("m", True, 1, 0),
            ("m", 1.0, -1, 0),
            ("m", 1.0, 1, "0"),
            ("/m", 1, 1, 0),
        ):
            s.log_metric(id, Metric(*bad))
            s.log_batch(id, [Metric(*bad)], [], [])
        s.log_batch(id, [Metric("k" * 251, 1.0, 1, 0)], [], [])
        s.log_metric("nope", Metric("m", 1.0, 1, 0))
        s.log_batch("nope", [Metric("m", 1.0, 1, 0)], [], [])
        for key in ("m", "b", "n", "nothing"):
            for run in (id, other, "nope"):
                s.get_metric_history(run, key)
        page = s.get_metric_history(id, "b", 400)
        page = s.get_metric_history(id, "b", 400, page.token)
        s.get_metric_history(id, "b", 400, page.token)
        for size in (1, 5, 2000):
            for run in (id, other):  # ids, by which several would be ordered, are others in each store
                s.get_metric_history_bulk([run], "m", size)
        for key in ("m", "b", "n", "nothing"):
            s.get_max_step_for_metric(id, key)
            s.get_metric_history_bulk_interval_from_steps(id, key, [2, 1], 3)
            for size in (1, 2, 3, 7, 10, 999, 1000, 5000, 0):
                s.get_metric_history_bulk_interval([id, other], key, size, None, None)
                s.get_metric_history_bulk_interval([id], key, size, 1, 3)
        s.get_metric_history_bulk_interval([id], "m", 10, None, 3)
        s.get_run(id)
        s.get_run(other)

    on_both(script)


def test_nan_stands_where_sql_has_it_among_points_of_one_time_and_step(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        id = a_run(s).info.run_id
        for time, step, value in (
            (0, 0, 1.0),
            (0, 0, math.nan),
            (0, 0, -1.0),
            (0, 1, math.nan),
            (0, 1, 2.0),
            (1, 0, math.nan),
            (1, 0, -3.0),
        ):
            s.log_metric(id, Metric("m", value, time, step))
        s.get_metric_history(id, "m")
        page = s.get_metric_history(id, "m", 2)
        s.get_metric_history(id, "m", 2, page.token)
        s.get_metric_history_bulk([id], "m", 100)
        s.get_metric_history_bulk_interval([id], "m", 4, None, None)
        s.get_metric_history_bulk_interval_from_steps(id, "m", [0, 1], 100)
        s.get_run(id)

    on_both(script)


def test_inputs_and_outputs_are_noted_once(on_both: Callable[[Script], None]) -> None:
    def dataset(name: str, digest: str, source: str = "s", tags: dict[str, str] | None = None) -> DatasetInput:
        return DatasetInput(Dataset(name, digest, "type", source, "schema", "profile"), [InputTag(k, v) for k, v in (tags or {}).items()])

    def script(s: Any) -> None:
        first, second = a_run(s).info.run_id, a_run(s).info.run_id
        elsewhere = a_run(s, s.create_experiment("other")).info.run_id
        s.log_inputs(first, [dataset("d", "1", tags={"mlflow.data.context": "train", "x": "y"}), dataset("d", "2")])
        s.log_inputs(first, [dataset("d", "1", "changed", {"new": "tag"})])
        s.log_inputs(second, [dataset("d", "1", "changed", {"new": "tag"}), dataset("d", "1", "again")])
        s.log_inputs(elsewhere, [dataset("d", "1", "elsewhere")])
        s.log_inputs(first, [DatasetInput(Dataset("n" * 501, "1", "t", "s"), [])])
        s.log_inputs(first, [DatasetInput(Dataset("n", "1", "t", "s"), [InputTag("k" * 256, "v")])])
        s.log_inputs("nope", [dataset("d", "1")])
        s.log_inputs(first, models=[LoggedModelInput("m-1")])
        s.log_outputs(first, [LoggedModelOutput("m-2", 3), LoggedModelOutput("m-3", 0)])
        s.log_outputs("nope", [])
        for run in (first, second, elsewhere):
            s.get_run(run)
        s.seen.append(("datasets", sorted(map(str, map(s.plain, s.backend.tracking._search_datasets(["0", "1"]))))))
        for text in (
            *("dataset.name = 'd'", "dataset.digest != '2'", "dataset.context = 'train'", "dataset.context LIKE 'tr%'"),
            *(
                "dataset.digest IN ('2', '3')",
                "dataset.name ILIKE 'D' AND dataset.digest = '2'",
                "dataset.name = 'none'",
                "dataset.foo = '1'",
            ),
        ):
            found = s.search_runs(["0", "1"], text, ViewType.ALL)
            s.seen[-1] = (text, (found and sorted(map(s.plain, (r.info.run_id for r in found)))) or s.seen[-1][1])

    on_both(script)


def test_inputs_stand_in_the_order_of_their_logging(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        id = a_run(s).info.run_id
        s.log_inputs(
            id,
            [DatasetInput(Dataset(name, digest, "t", "s"), [InputTag("k", name)]) for name, digest in (("b", "9"), ("a", "8"), ("c", "1"))],
        )
        s.log_inputs(id, [DatasetInput(Dataset("a", "1", "t", "s"), []), DatasetInput(Dataset("b", "9", "t", "s"), [])])
        s.get_run(id)
        s.search_runs(["0"], None, ViewType.ALL)

    on_both(script)


def test_histories_of_several_runs_come_together(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        tracking = s.backend.tracking
        runs = [a_run(s).info.run_id for _ in range(3)]
        for number, run in enumerate(runs):
            s.log_batch(run, [Metric("m", math.nan if i == 2 else 10.0 * number + i, i, i) for i in range(6)], [], [])
            s.log_metric(run, Metric("other", 1.0, 1, 1))
        for run in runs:
            s.seen.append(("bulk", [s.plain(m) for m in tracking.get_metric_history_bulk([*runs, "nope"], "m", 100) if m.run_id == run]))
        s.seen.append(("first of all", [len(tracking.get_metric_history_bulk(runs, "m", size)) for size in (0, 7, 100)]))
        s.get_metric_history_bulk_interval([runs[2], runs[0], "nope", runs[2]], "m", 3, None, None)
        s.get_metric_history_bulk_interval(runs, "m", 2, 1, 4)
        s._hard_delete_run(runs[1])
        s.get_metric_history_bulk_interval(runs, "m", 100, None, None)
        s.get_metric_history_bulk([], "m", 10)

    on_both(script)


def test_logged_models_live_from_creation_to_deletion(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        run = a_run(s).info.run_id
        model = s.create_logged_model("0", "m", run, [LoggedModelTag("t", "1")], [LoggedModelParameter("p", "2")], "sklearn")
        id = model.model_id
        for name in ("", "a/b", "a:b", "a.b", "a%b", "a'b", 'a"b'):
            s.create_logged_model("0", name)
        s.create_logged_model("99")
        s.finalize_logged_model(id, LoggedModelStatus.READY)
        s.set_logged_model_tags(id, [LoggedModelTag("t", "new"), LoggedModelTag("u", "1"), LoggedModelTag("u", "2")])
        s.delete_logged_model_tag(id, "t")
        s.delete_logged_model_tag(id, "t")
        s.log_logged_model_params(id, [LoggedModelParameter("q", "3")])
        s.log_metric(run, Metric("acc", 0.5, 1, 1, model_id=id, dataset_name="d", dataset_digest="1"))
        s.log_batch(run, [Metric("acc", 0.6, 2, 2, model_id=id), Metric("acc", 0.6, 2, 2, model_id=id), Metric("plain", 1.0, 1, 1)], [], [])
        s.get_logged_model(id)
        s.get_run(run)
        s.delete_logged_model(id)
        s.get_logged_model(id)
        s.get_logged_model(id, allow_deleted=True)
        s.search_logged_models(["0"])
        for call in (s.get_logged_model, s.delete_logged_model, s._hard_delete_logged_model):
            call("nope")
        s.finalize_logged_model("nope", LoggedModelStatus.READY)
        s.set_logged_model_tags("nope", [])
        s.delete_logged_model_tag("nope", "k")
        s._get_deleted_logged_models(3_600_000)
        s._get_deleted_logged_models()
        s._hard_delete_logged_model(id)
        s.get_logged_model(id, allow_deleted=True)

    on_both(script)


def test_logged_models_are_searched_ordered_and_paged(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        run = a_run(s).info.run_id
        names = ["b", "a", "c", "d"]
        models = [s.create_logged_model("0", n, run, [LoggedModelTag("t", n)], [LoggedModelParameter("p", n)]).model_id for n in names]
        for number, model in enumerate(models[:3]):
            metrics = [Metric("acc", number / 10, 10 - number, 1, model_id=model, dataset_name=f"d{number % 2}", dataset_digest="1")]
            metrics += [Metric("acc", 1 - number / 10, 20, step, model_id=model) for step in range(3)]
            s.log_batch(run, metrics, [], [])
        by_name = [{"field_name": "name"}]
        for text in (
            *("name = 'a'", "name != 'a'", "name LIKE 'A'", "name ILIKE 'A'", "name IN ('a', 'b')", "name NOT IN ('a')", "tags.t = 'a'"),
            *("params.p != 'a'", "params.p LIKE '%' AND tags.t = 'b'", "metrics.acc > 0.85", "metrics.acc < 0.05", "metrics.acc = 0.9"),
            *(
                "creation_timestamp > 0",
                "creation_time < 10",
                "metrics.acc > 0.5 AND metrics.acc < 0.2",
                "model_type = 'x'",
                "tags.x = '1'",
            ),
            *("metrics.acc LIKE '1'", "foo.x = '1'", "name > 'a'", "name = 'a' OR name = 'b'", "experiment_id = '0'"),
        ):
            s.search_logged_models(["0"], text, order_by=by_name)
        for datasets in (
            [{"dataset_name": "d0"}],
            [{"dataset_name": "d1", "dataset_digest": "2"}],
            [{"dataset_name": "d0"}, {"dataset_name": "d1"}],
            [{}],
        ):
            s.search_logged_models(["0"], None, datasets, order_by=by_name)
            s.search_logged_models(["0"], "metrics.acc < 0.15", datasets, order_by=by_name)
        for order in (
            *(
                [{"field_name": "name", "ascending": False}],
                [{"field_name": "metrics.acc"}],
                [{"field_name": "metrics.acc", "ascending": False}],
            ),
            *([{"field_name": "metrics.acc", "dataset_name": "d0"}, {"field_name": "name"}], [{"field_name": "metrics.none"}, *by_name]),
            *([{"field_name": "foo"}], [{"field_name": "params.p"}], [{"field_name": "model_type"}, *by_name]),
        ):
            s.search_logged_models(["0"], order_by=order)
        first = s.search_logged_models(["0"], max_results=3, order_by=by_name)
        s.search_logged_models(["0"], max_results=3, order_by=by_name, page_token=first.token)
        s.search_logged_models(["0"], "name = 'a'", max_results=3, order_by=by_name, page_token=first.token)
        s.search_logged_models(["1"], max_results=3, order_by=by_name, page_token=first.token)
        s.search_logged_models([])
        s.search_logged_models(["x"])

    on_both(script)


def test_trash_is_emptied_as_mlflow_gc_asks(on_both: Callable[[Script], None]) -> None:
    def script(s: Any) -> None:
        experiment = s.create_experiment("doomed")
        kept, gone = a_run(s).info.run_id, a_run(s).info.run_id
        inside = a_run(s, experiment).info.run_id
        s.log_metric(gone, Metric("m", 1.0, 1, 1))
        s._get_deleted_runs()
        s.delete_run(gone)
        s._get_deleted_runs()
        s._get_deleted_runs(older_than=3_600_000)
        s._hard_delete_run(gone)
        s._hard_delete_run(gone)
        s.get_run(gone)
        s.get_metric_history(gone, "m")
        s.get_run(kept)
        s._hard_delete_experiment(experiment)
        s.delete_experiment(experiment)
        s._hard_delete_experiment(experiment)
        s.get_experiment(experiment)
        s.get_run(inside)
        s.get_experiment_by_name("doomed")

    on_both(script)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_values_are_found_by_equality(on_both: Callable[[Script], None], text: str) -> None:
    quote = '"' if "'" in text else "'"

    def script(s: Any) -> None:
        id = a_run(s, tags=[RunTag("t", text)]).info.run_id
        a_run(s, tags=[RunTag("t", "another")])
        s.log_param(id, Param("p", text))
        for clause in (f"tags.t = {quote}{text}{quote}", f"params.p != {quote}{text}{quote}", f"tags.t LIKE {quote}{text[:1]}%{quote}"):
            s.search_runs(["0"], clause, ViewType.ACTIVE_ONLY, 10, ["tags.t"])  # else by run id, and those are random

    on_both(script)
