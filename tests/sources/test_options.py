"""What may be asked of the sources, and what is said to a mistake; without Spark, as its planner calls them."""

from __future__ import annotations

import pytest

from spark_tracking.errors import SparkTrackingError
from spark_tracking.sources.datasource import ExperimentSource, MlflowSource
from spark_tracking.sources.options import Defaults, parse_options

LAKE = "delta:///lake"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"filtr": "x"}, "There is no option 'filtr'. Did you mean 'filter'? Options: tracking_uri"),
        ({"view_type": "some"}, "view_type='some' is none of active_only, deleted_only, all"),
        ({"partitions": "0"}, "partitions='0' is not a whole number of 1 or more"),
        ({"requests_per_second": "-1"}, "requests_per_second='-1' is not a number above 0"),
        ({"start_after": "soon"}, "start_after='soon' is not a time"),
        ({"version": "1", "timestamp": "2026-01-01"}, "Both version and timestamp are given"),
        ({"path": "first"}, "There is no experiment with id first"),
        ({"experiment_names": "third"}, "There is no experiment with name 'third'"),
        ({"path": "77"}, "There is no experiment with id 77"),
        ({"filter": "metrics.acc > 1 AND nonsense"}, "does not parse at position 21: nonsense"),
        ({"filter": "params.a = 'x AND y' AND metrics.b"}, "does not parse at position 26: metrics.b"),
        ({"tracking_uri": "delta:///no/lake/here"}, "There is no lake at '/no/lake/here'"),
        ({"tracking_uri": "http://127.0.0.1:9"}, "http://127.0.0.1:9 did not answer"),
        ({"tracking_uri": "sqlite:////no/such.db"}, "There is no database file '/no/such.db'"),
        ({"tracking_uri": "postgresql://me:hunter2@h/db"}, "options can be seen in plans"),
        ({"tracking_uri": "ftp://h"}, "MLflow knows no tracking server for 'ftp://h'"),
        ({"owner": "me"}, "Make a view instead"),
    ],
)
def test_a_mistake_is_told_with_what_to_do(still_lake: str, options: dict[str, str], said: str) -> None:
    with pytest.raises(SparkTrackingError) as caught:
        ExperimentSource({"tracking_uri": still_lake, **({} if "experiment_names" in options else {"path": "1"}), **options}).schema()
    assert said in caught.value.message
    assert "hunter2" not in caught.value.message


def test_a_table_must_be_named_and_exist() -> None:
    for path in ({}, {"path": "no_table"}):
        with pytest.raises(SparkTrackingError, match="runs_latest"):
            MlflowSource({"tracking_uri": LAKE, **path}).schema()


def test_where_to_read_is_the_option_then_use_then_the_environment() -> None:
    environ = {"MLFLOW_TRACKING_URI": "http://environment"}
    used = Defaults("http://used", used=True)

    def uri(options: dict[str, str], defaults: Defaults, environ: dict[str, str]) -> str:
        return parse_options({"path": "1", **options}, "runs", defaults, environ).tracking_uri

    assert uri({"tracking_uri": LAKE}, used, environ) == LAKE
    assert uri({}, used, environ) == "http://used"
    assert uri({}, Defaults(), environ) == "http://environment"
    assert uri({}, Defaults(), {"DATABRICKS_RUNTIME_VERSION": "17.3"}) == "databricks"
    with pytest.raises(SparkTrackingError, match="does not know which tracking server"):
        uri({}, Defaults(), {})


def test_load_without_an_id_takes_the_active_experiment() -> None:
    def asked(defaults: Defaults, environ: dict[str, str]) -> tuple[object, object]:
        query = parse_options({"tracking_uri": LAKE}, "runs", defaults, environ).query
        return query.experiment_ids, query.experiment_names

    environ = {"MLFLOW_EXPERIMENT_ID": "4", "MLFLOW_EXPERIMENT_NAME": "x"}
    assert asked(Defaults(experiment_ids=("3",)), environ) == (("3",), ())
    assert asked(Defaults(), environ) == (("4",), ())
    assert asked(Defaults(), {"MLFLOW_EXPERIMENT_NAME": "x"}) == (None, ("x",))
    assert asked(Defaults(), {"SPARK_TRACKING_EXPERIMENT": "churn"}) == (None, ("churn",))
    for environ in ({}, {"SPARK_TRACKING_EXPERIMENT": "{user}"}):  # 0 would be a guess: set_experiment does not reach Spark
        for defaults in (Defaults(), Defaults("http://used", used=True)):
            with pytest.raises(SparkTrackingError, match=r"use\(spark\) after mlflow.set_experiment, or name one: load\("):
                asked(defaults, environ)


def test_neither_passwords_nor_variables_show_in_a_repr() -> None:
    defaults = Defaults("postgresql://me:hunter2@h/db", None, {"MLFLOW_TRACKING_PASSWORD": "hunter3"}, used=True)
    request = parse_options({"path": "1"}, "runs", defaults, {})
    assert request.tracking_uri.endswith("hunter2@h/db")
    assert "hunter" not in repr(defaults) + repr(request)
