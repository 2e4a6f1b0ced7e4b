# Databricks notebook source
# MAGIC %md
# MAGIC # A lake's tables in the catalog, and what to ask them
# MAGIC
# MAGIC `LAKE` names the lake. The tables have the columns of `system.mlflow`: the queries in `sql/` run on both.

# COMMAND ----------

# MAGIC %pip install spark-tracking

# COMMAND ----------

import os
from pathlib import Path

from spark_tracking.sources.catalog import register

SCHEMA = "mlflow"
print(register(spark, os.environ.get("LAKE", "demo-lake"), schema=SCHEMA))
spark.sql(f"USE {SCHEMA}")
spark.sql("SHOW TABLES").show(truncate=False)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Who tracks how much, and where the work happens

# COMMAND ----------

queries = Path("sql")
spark.sql((queries / "runs_per_user.sql").read_text()).show(truncate=False)
spark.sql((queries / "runs_per_experiment.sql").read_text()).show(truncate=False)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Reliability

# COMMAND ----------

spark.sql((queries / "least_reliable_experiments.sql").read_text()).show(truncate=False)
spark.sql((queries / "failures_per_day.sql").read_text()).show(truncate=False)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Metrics: each one's least, greatest and latest value

# COMMAND ----------

spark.sql((queries / "metric_summary.spark.sql").read_text()).show(truncate=False)
