-- The last logged value of each metric of each run, from the history.
SELECT run_id, metric_name, metric_value
FROM (
  SELECT run_id, metric_name, metric_value,
         row_number() OVER (PARTITION BY run_id, metric_name ORDER BY metric_step DESC, metric_time DESC) AS place
  FROM run_metrics_history
) ranked
WHERE place = 1
ORDER BY run_id, metric_name
