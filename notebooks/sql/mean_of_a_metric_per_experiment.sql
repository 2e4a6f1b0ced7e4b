-- The mean of a metric across experiments. For GPUs: 'system/gpu_0_utilization_percentage', as MLflow's system metrics log it.
SELECT e.name, count(DISTINCT h.run_id) AS runs, avg(h.metric_value) AS mean_value
FROM run_metrics_history h JOIN experiments_latest e ON h.experiment_id = e.experiment_id
WHERE h.metric_name = 'acc'
GROUP BY e.name
ORDER BY mean_value DESC
