# Databricks notebook source
# MAGIC %md
# MAGIC # Reading, ranking, comparing and plotting runs
# MAGIC
# MAGIC From whichever tracking server this process is pointed at (`MLFLOW_TRACKING_URI` or `mlflow.set_tracking_uri`): a lake, a
# MAGIC database, a server, Databricks. Needs matplotlib.

# COMMAND ----------

# MAGIC %pip install spark-tracking matplotlib

# COMMAND ----------

import mlflow

import spark_tracking as st

st.use(spark)
experiments = spark.read.format("mlflow").load("experiments_latest")
experiments.select("experiment_id", "name", "create_time").orderBy("create_time").show(truncate=False)

# COMMAND ----------

# MAGIC %md
# MAGIC ## The leaderboard
# MAGIC The metric that most runs have, its best ten. Choose another one by hand if less is better.

# COMMAND ----------

from pyspark.sql import functions as F

runs = spark.read.format("mlflow").load("runs_latest")
metric = (
    runs.select(F.explode("metrics")).groupBy("key").count().orderBy(F.desc("count"), "key").first()["key"]
)
best = (
    runs.where(F.col("metrics")[metric].isNotNull())
    .select("run_id", "experiment_id", "run_name", "params", "metrics", F.col("metrics")[metric].alias("score"))
    .orderBy(F.desc("score"), "run_id")
    .limit(10)
    .toPandas()
)
print(metric)
print(best[["run_name", "score", "run_id"]].to_string(index=False))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Comparing: what differs between the best runs

# COMMAND ----------

import pandas as pd

params = pd.DataFrame([dict(p) for p in best["params"]], index=best["run_name"])
differing = params.loc[:, params.astype(str).nunique() > 1]
print(differing.assign(**{metric: best["score"].to_numpy()}).to_string())

# COMMAND ----------

# MAGIC %md
# MAGIC ## A metric over its steps

# COMMAND ----------

import matplotlib.pyplot as plt

history = (
    spark.read.format("mlflow")
    .load("run_metrics_history")
    .where((F.col("metric_name") == metric) & F.col("run_id").isin(best["run_id"].tolist()))
    .orderBy("metric_step")
    .toPandas()
)
steps = history.pivot_table(index="metric_step", columns="run_id", values="metric_value")
curves = steps.plot(marker=".", xlabel="step", ylabel=metric, title="The best runs, step by step", legend=False)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Parallel coordinates: parameters that are numbers, and the score

# COMMAND ----------

numbers = params.apply(pd.to_numeric, errors="coerce").dropna(axis="columns").assign(score=best["score"].to_numpy())
scaled = (numbers - numbers.min()) / (numbers.max() - numbers.min()).replace(0, 1)
coordinates = scaled.T.plot(legend=False, ylabel="least to greatest", title="Parameters and score of the best runs")
plt.show()
