-- Least, greatest and latest value of each metric of each run, without a look at the history. For Spark and Databricks (explode).
SELECT run_name, m.metric_name, m.min_value, m.max_value, m.latest_value
FROM runs_latest LATERAL VIEW explode(aggregated_metrics) exploded AS m
WHERE delete_time IS NULL
ORDER BY run_name, m.metric_name
