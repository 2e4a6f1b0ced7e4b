"""The whole product once, on the data sets that ship inside scikit-learn: what `make demo` and `spark-tracking demo` run."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from spark_tracking.address import LakeUri

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

    from spark_tracking.scoring import ScoreResult

MODEL = "wine"
_LEADERBOARD = """
    SELECT tags['mlflow.runName'] AS run,
           (SELECT count(*) FROM runs AS child WHERE child.tags['mlflow.parentRunId'] = runs.run_id) AS nested_runs,
           round(metrics['best_cv_score'], 4) AS cv_accuracy,
           date_format(start_time, 'yyyy-MM-dd HH:mm:ss') AS started,
           run_id
    FROM runs
    WHERE status = 'FINISHED' AND metrics['best_cv_score'] IS NOT NULL
    ORDER BY metrics['best_cv_score'] DESC, start_time DESC
"""
_TOTALS = """
    SELECT name AS experiment, count(*) AS runs, to_char(max(end_time), '%Y-%m-%d %H:%M:%S') AS last_ended_utc
    FROM runs_latest JOIN experiments_latest USING (experiment_id)
    GROUP BY name ORDER BY name
"""


@dataclass(frozen=True)
class DemoResult:
    """What a demo left behind: the wine experiment, its best run, the version that `champion` points at, and what was scored."""

    tracking_uri: str
    experiment_id: str
    run_id: str
    model_version: int
    scored: ScoreResult


def run_demo(lake: str = "demo-lake") -> DemoResult:
    """Train, read, register, score and look, telling each step in a few lines on stdout. Running it again adds to the lake.

    The lake is made if it does not exist. A Spark session that already runs is used, else a small local one that is stopped at the end.

    Example:
        >>> run_demo("demo-lake").model_version
        1
    """
    uri = open_lake(lake)
    with _session() as spark:
        experiment_id = train_wine()
        train_diabetes()
        train_breast_cancer(spark)
        run_id = best_run(spark, experiment_id)
        version = register(run_id)
        scored = score(spark, uri)
        look(uri)
    return DemoResult(str(uri), experiment_id, run_id, version, scored)


def open_lake(lake: str) -> LakeUri:
    """Step 1: make or open the lake, and point this process, and the JVM that it may start, at it."""
    from spark_tracking.cluster.environment import apply
    from spark_tracking.lake import Lake

    _quiet()
    uri = LakeUri.parse(lake)
    _title(1, f"The lake {uri.root}")
    Lake.open(uri, create=True)
    plan = apply({"SPARK_TRACKING_URI": str(uri), "SPARK_TRACKING_EXPERIMENT": MODEL})
    print("   what a cluster's start would set for each of its processes is set for this one:")
    for name, value in plan.variables.items():
        print(f"   {name}={value}")
    return uri


def train_wine() -> str:
    """Step 2: two grid searches with autolog, whose candidates become nested runs; the experiment's id."""
    import mlflow
    from sklearn.datasets import load_wine
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    _title(2, "Training, logged by the plain MLflow API")
    experiment = mlflow.set_experiment("wine")
    mlflow.sklearn.autolog(log_post_training_metrics=False)
    features, target = load_wine(return_X_y=True, as_frame=True)
    searches = {
        "logistic regression": (LogisticRegression(max_iter=1000), {"classifier__C": [0.01, 0.1, 1.0, 10.0]}),
        "random forest": (RandomForestClassifier(n_estimators=30, random_state=0), {"classifier__max_depth": [2, 3, 5]}),
    }
    for name, (classifier, grid) in searches.items():
        steps = [("log", FunctionTransformer(log_scale)), ("scale", StandardScaler()), ("classifier", classifier)]
        with mlflow.start_run(run_name=name):
            search = GridSearchCV(Pipeline(steps), grid, cv=5).fit(features, target)
        candidates = len(search.cv_results_["params"])
        print(f"   wine           grid search, {name}: {candidates} nested runs, best accuracy {search.best_score_:.3f}")
    return str(experiment.experiment_id)


def log_scale(values: np.ndarray) -> np.ndarray:
    """A user's own transformation, as it stands in many pipelines: log(1 + x)."""
    import numpy as np

    return np.asarray(np.log1p(values))


def train_diabetes() -> None:
    """Step 2, again: one regression in an experiment of its own."""
    import mlflow
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import train_test_split

    mlflow.set_experiment("diabetes")
    train_x, test_x, train_y, test_y = train_test_split(*load_diabetes(return_X_y=True, as_frame=True), random_state=0)
    with mlflow.start_run(run_name="ridge"):
        score = Ridge(alpha=0.1).fit(train_x, train_y).score(test_x, test_y)
        mlflow.log_metric("test_r2", score)
    print(f"   diabetes       ridge regression: r2 {score:.3f} on rows it had not seen")


def train_breast_cancer(spark: SparkSession) -> None:
    """Step 2, with Spark: a PySpark ML pipeline, fitted on a Spark DataFrame and logged with its model."""
    import mlflow
    from pyspark.ml import Pipeline
    from pyspark.ml.classification import DecisionTreeClassifier
    from pyspark.ml.evaluation import BinaryClassificationEvaluator
    from pyspark.ml.feature import VectorAssembler
    from sklearn.datasets import load_breast_cancer

    mlflow.set_experiment("breast cancer")
    data = load_breast_cancer(as_frame=True)
    train, test = spark.createDataFrame(data.frame).randomSplit([0.75, 0.25], seed=0)
    stages: list[Any] = [
        VectorAssembler(inputCols=list(data.feature_names), outputCol="features"),
        # a tree, since Spark 4.2.0 cannot always send models with a training summary to its tasks
        DecisionTreeClassifier(labelCol="target", maxDepth=4, seed=0),
    ]
    with mlflow.start_run(run_name="spark decision tree"):
        mlflow.log_params({"maxDepth": 4})
        model = Pipeline(stages=stages).fit(train)
        area = BinaryClassificationEvaluator(labelCol="target").evaluate(model.transform(test))
        mlflow.log_metric("area_under_roc", area)
        mlflow.spark.log_model(model, "model", pip_requirements=["pyspark"])
    print(f"   breast cancer  PySpark ML, decision tree: area under ROC {area:.3f} on rows it had not seen")


def best_run(spark: SparkSession, experiment_id: str) -> str:
    """Step 3: the leaderboard by plain Spark SQL; the id of the run with the best cross-validated accuracy, the latest of several."""
    _title(3, f'The leaderboard: spark.read.format("mlflow-experiment").load("{experiment_id}") and plain SQL')
    spark.read.format("mlflow-experiment").load(experiment_id).createOrReplaceTempView("runs")
    board = spark.sql(_LEADERBOARD).limit(5)
    _show(board)
    return str(board.collect()[0]["run_id"])


def register(run_id: str) -> int:
    """Step 4: the run's model becomes the next version of the registered model, and its champion; that version."""
    import mlflow

    _title(4, "The best run's model, registered")
    client = mlflow.MlflowClient()
    outputs = client.get_run(run_id).outputs
    logged = [client.get_logged_model(output.model_id) for output in (outputs.model_outputs if outputs else [])]
    best = next(model for model in logged if model.name == "best_estimator")
    with contextlib.redirect_stderr(sys.stdout):  # where MLflow tells what it registered
        version = int(mlflow.register_model(best.model_uri, MODEL).version)
    client.set_registered_model_alias(MODEL, "champion", str(version))
    print(f"   models:/{MODEL}/{version} is now models:/{MODEL}@champion")
    return version


def score(spark: SparkSession, lake: LakeUri) -> ScoreResult:
    """Step 5: a Delta table in, a Delta table with predictions out."""
    from sklearn.datasets import load_wine

    from spark_tracking.scoring import score_table

    source, target = f"{lake.root}/tables/wine", f"{lake.root}/tables/wine_scored"
    _title(5, f'Scoring: st.score_table(spark, "models:/{MODEL}@champion", source, target)')
    spark.createDataFrame(load_wine(as_frame=True).data).write.format("delta").mode("overwrite").save(source)
    result = score_table(
        spark, f"models:/{MODEL}@champion", source, target, result_type="int", keep=["alcohol", "proline"], model_columns=True
    )
    _show(spark.read.format("delta").load(target).orderBy("scored_at", ascending=False).drop("scored_at").limit(3))
    print(f"   from {source}, Delta version {result.source_version}, {result.rows} rows")
    print(f"   into {target}, Delta version {result.target_version}")
    print(f"   with {MODEL} version {result.model['model_version']}, in {result.seconds:.1f} s")
    return result


def look(lake: LakeUri) -> None:
    """Step 6: the same lake through a second engine, and how to open MLflow's web UI on it."""
    import pyarrow as pa
    from deltalake import DeltaTable, QueryBuilder

    from spark_tracking.lake import Lake

    _title(6, "The same lake through another engine: delta-rs SQL on its tables, without Spark or MLflow")
    Lake.open(lake).refresh()
    engine = QueryBuilder()
    for table in ("experiments_latest", "runs_latest"):
        engine = engine.register(table, DeltaTable(f"{lake.root}/{table}"))
    _print_table(pa.table(engine.execute(_TOTALS)).to_pandas())
    print(f"\nMLflow's web UI on this lake: make ui\n  (or: mlflow server --backend-store-uri {lake})")


@contextmanager
def _session() -> Iterator[SparkSession]:
    """The running Spark session, or a local one that ends with the block."""
    from pyspark.sql import SparkSession

    from spark_tracking.cluster.use import use
    from spark_tracking.spark.session import running_or_local

    running = SparkSession.getActiveSession()
    with running_or_local("spark-tracking demo") as spark:
        if running is not None:
            use(spark)  # a JVM that started before step 1 does not know the lake
        yield spark


def _show(frame: DataFrame) -> None:
    """A Spark DataFrame's few rows."""
    _print_table(cast("pd.DataFrame", frame.toPandas()))


def _print_table(rows: pd.DataFrame) -> None:
    print("\n".join("   " + line for line in rows.to_string(index=False).splitlines()))


def _title(number: int, text: str) -> None:
    print(f"\n{number}. {text}", flush=True)


def _quiet() -> None:
    """Drop what a reader of the demo cannot act on, by name; every other warning and all errors are shown."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # Autolog pickles, and the demo's pipeline needs it: skops does not take a user's own function without being asked.
    logging.getLogger("mlflow.sklearn").addFilter(lambda record: "pickle or cloudpickle format" not in record.getMessage())
    # MLflow's integer-column hint and its use of scikit-learn's older names.
    warnings.filterwarnings("ignore", message=".*Inferred schema contains integer column", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning, module="sklearn")
