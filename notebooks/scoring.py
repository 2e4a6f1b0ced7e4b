# Databricks notebook source
# MAGIC %md
# MAGIC # From a grid search to a table of predictions
# MAGIC
# MAGIC Trains a model by grid search with autologging, registers the best one, scores a Delta table with it, and looks at what
# MAGIC came out. Works on any Spark with Delta and with whichever tracking server `MLFLOW_TRACKING_URI` names.

# COMMAND ----------

# MAGIC %pip install spark-tracking scikit-learn

# COMMAND ----------

import mlflow
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import spark_tracking as st

wine = load_wine(as_frame=True)
features, kinds = wine.data, wine.target

# COMMAND ----------

# MAGIC %md
# MAGIC ## Train
# MAGIC Autologging records the search, its candidates as child runs, and the best estimator as a model.

# COMMAND ----------

mlflow.set_experiment("scoring-notebook")
mlflow.sklearn.autolog(serialization_format="cloudpickle", log_post_training_metrics=False)
search = GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {"logisticregression__C": [0.1, 1.0]}, cv=3)
with mlflow.start_run() as run:
    search.fit(features, kinds)
mlflow.sklearn.autolog(disable=True)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Register
# MAGIC An alias says which version to score with. It can move later without touching any job.

# COMMAND ----------

version = mlflow.register_model(f"runs:/{run.info.run_id}/best_estimator", "wine-search").version
mlflow.MlflowClient().set_registered_model_alias("wine-search", "champion", version)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Score
# MAGIC From a Delta table to a Delta table. Running this cell again scores only what `wine_features` gained meanwhile.

# COMMAND ----------

features.assign(id=range(len(features))).pipe(spark.createDataFrame).write.format("delta").mode("ignore").saveAsTable("wine_features")
spark.sql("CREATE TABLE IF NOT EXISTS wine_scored (id BIGINT, prediction BIGINT) USING delta")
result = st.score_table(
    spark, "models:/wine-search@champion", "wine_features", "wine_scored", keep=["id"], since="last", job="notebook"
)
print(result)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Look
# MAGIC How many of each kind, how sure the model is, and which model wrote which rows.

# COMMAND ----------

spark.table("wine_scored").groupBy("prediction").count().orderBy("prediction").show()

probabilities = st.score_udf(spark, "models:/wine-search@champion", method="predict_proba")
spark.table("wine_features").select("id", probabilities().alias("probabilities")).orderBy("id").show(5, truncate=False)

spark.sql("DESCRIBE HISTORY wine_scored").select("version", "operation", "userMetadata").show(truncate=80)
