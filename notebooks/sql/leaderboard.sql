-- The leaderboard: runs by the last value of `acc` that they logged, the best first.
SELECT run_name, created_by, acc
FROM (
  SELECT r.run_name, r.created_by, h.metric_value AS acc,
         row_number() OVER (PARTITION BY r.run_id ORDER BY h.metric_step DESC, h.metric_time DESC) AS place
  FROM runs_latest r JOIN run_metrics_history h ON h.run_id = r.run_id
  WHERE h.metric_name = 'acc' AND r.delete_time IS NULL
) last_points
WHERE place = 1
ORDER BY acc DESC
