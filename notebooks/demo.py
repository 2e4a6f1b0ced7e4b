# Databricks notebook source
# MAGIC %md
# MAGIC # spark-tracking: the whole product once
# MAGIC
# MAGIC Train with plain MLflow, read the runs with Spark SQL, register the best model, score a Delta table, and look at the
# MAGIC same lake with another engine. The steps live in `spark_tracking.examples.demo`; `make demo` runs the same.
# MAGIC
# MAGIC Needs Spark 4 (Databricks Runtime 17 or newer) with Delta, and scikit-learn.

# COMMAND ----------

# MAGIC %pip install spark-tracking

# COMMAND ----------

# MAGIC %md
# MAGIC ## 1. The lake
# MAGIC A folder that the driver and all workers see, such as `abfss://container@account.dfs.core.windows.net/lake`. A relative
# MAGIC path is good for one machine.

# COMMAND ----------

from spark_tracking.examples import demo

lake = demo.open_lake("demo-lake")

# COMMAND ----------

# MAGIC %md
# MAGIC This notebook's Spark was running before the lake was chosen; `use` tells it.

# COMMAND ----------

import spark_tracking as st

st.use(spark)

# COMMAND ----------

# MAGIC %md
# MAGIC ## 2. Training, logged by the plain MLflow API

# COMMAND ----------

experiment_id = demo.train_wine()
demo.train_diabetes()
demo.train_breast_cancer(spark)

# COMMAND ----------

# MAGIC %md
# MAGIC ## 3. The leaderboard, by Spark SQL

# COMMAND ----------

run_id = demo.best_run(spark, experiment_id)

# COMMAND ----------

# MAGIC %md
# MAGIC ## 4. The best run's model becomes the champion

# COMMAND ----------

version = demo.register(run_id)

# COMMAND ----------

# MAGIC %md
# MAGIC ## 5. A Delta table in, a Delta table with predictions out

# COMMAND ----------

scored = demo.score(spark, lake)

# COMMAND ----------

# MAGIC %md
# MAGIC ## 6. The same lake through another engine

# COMMAND ----------

demo.look(lake)
