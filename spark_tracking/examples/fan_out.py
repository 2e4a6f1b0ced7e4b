"""A hyper-parameter search in Spark tasks: one group a combination, one child run a group. The example of `executor_run`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

SCHEMA = "depth long, leaf long, seed long, accuracy double, run_id string"


def combinations(spark: SparkSession, count: int = 200) -> DataFrame:
    """Columns depth, leaf, seed: `count` combinations to try, one row each."""
    return spark.range(count).selectExpr("1 + id % 10 AS depth", "1 + (id DIV 10) % 5 AS leaf", "id DIV 50 AS seed")


def search(frame: DataFrame, *, rounds: int = 10) -> DataFrame:
    """Try each combination (depth, leaf, seed) in a task of its own group, and log it as a child of the active run.

    Each of the boosting `rounds` is a step of the metric `accuracy`. One row a combination with its accuracy and run id; lazy, and
    logged once however often it is computed.

    Raises:
        InvalidState: no run is active.

    Example:
        >>> with mlflow.start_run():                                     # doctest: +SKIP
        ...     best = search(combinations(spark)).orderBy("accuracy", ascending=False).first()
    """
    from spark_tracking.cluster.executors import executor_run, executor_tracking

    tracking = executor_tracking()

    def fit(group: pd.DataFrame) -> pd.DataFrame:
        params = {name: int(group[name].iloc[0]) for name in ("depth", "leaf", "seed")}
        with executor_run(tracking, key=tuple(params.values()), name="depth {depth}, leaf {leaf}, seed {seed}".format(**params)) as run:
            run.log_params(params)
            accuracies = _accuracies(rounds=rounds, **params)
            for step, accuracy in enumerate(accuracies):
                run.log_metric("accuracy", accuracy, step)
        return group.assign(accuracy=accuracies[-1], run_id=run.run_id)

    return frame.groupby("depth", "leaf", "seed").applyInPandas(fit, SCHEMA)


def _accuracies(depth: int, leaf: int, seed: int, rounds: int) -> list[float]:
    """Accuracy on held-out wines after each round."""
    from sklearn.datasets import load_wine
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.model_selection import train_test_split

    x, y = load_wine(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, random_state=seed)
    model: Any = GradientBoostingClassifier(n_estimators=rounds, max_depth=depth, min_samples_leaf=leaf, random_state=seed)
    model.fit(x_train, y_train)
    return [float((predicted == y_test).mean()) for predicted in model.staged_predict(x_test)]
