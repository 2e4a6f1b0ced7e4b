-- Which value of a param does best: the mean and the greatest `acc` that runs reached, by their `lr`.
SELECT r.params['lr'] AS lr, count(DISTINCT r.run_id) AS runs, avg(h.metric_value) AS mean_acc, max(h.metric_value) AS best_acc
FROM runs_latest r JOIN run_metrics_history h ON h.run_id = r.run_id
WHERE r.delete_time IS NULL AND h.metric_name = 'acc'
GROUP BY r.params['lr']
ORDER BY best_acc DESC
