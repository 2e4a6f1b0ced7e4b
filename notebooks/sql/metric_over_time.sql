-- A metric over time: each point of `acc` in each run, in the order of its steps. The dashboards' line chart.
SELECT r.run_name, h.metric_step, h.metric_time, h.metric_value
FROM run_metrics_history h JOIN runs_latest r ON h.run_id = r.run_id
WHERE h.metric_name = 'acc' AND r.delete_time IS NULL
ORDER BY r.run_name, h.metric_step, h.metric_time
