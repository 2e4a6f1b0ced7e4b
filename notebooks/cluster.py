# Databricks notebook source
# MAGIC %md
# MAGIC # The cluster: every node tracks to the right place
# MAGIC
# MAGIC On a cluster whose init script has run, no cell here that sets anything up is needed: `mlflow.start_run()` is enough, on the
# MAGIC driver and in tasks. See `docs/cluster.md`.

# COMMAND ----------

# MAGIC %pip install spark-tracking

# COMMAND ----------

# MAGIC %md
# MAGIC ## 1. Where does this notebook track to, by which rule, and does it work?

# COMMAND ----------

import mlflow
import spark_tracking as st

report = st.doctor(spark)
print(report)

# COMMAND ----------

# MAGIC %md
# MAGIC ## 2. A run, with no set-up

# COMMAND ----------

with mlflow.start_run(run_name="plain") as run:
    mlflow.log_metric("answer", 42.0)

# COMMAND ----------

# MAGIC %md
# MAGIC ## 3. A search in tasks
# MAGIC
# MAGIC Each combination is a group of `applyInPandas`, and a child run of the run below. A task that Spark tries again does not log
# MAGIC twice. The function is `spark_tracking.examples.fan_out.search`.

# COMMAND ----------

from spark_tracking.examples import fan_out

grid = fan_out.combinations(spark, 200)

with mlflow.start_run(run_name="search") as parent:
    tried = fan_out.search(grid, rounds=3).orderBy("accuracy", ascending=False).toPandas()
tried.head()
