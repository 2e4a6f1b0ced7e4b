-- How long runs take, by experiment, in seconds. For Spark and Databricks (timestampdiff).
SELECT e.name, count(*) AS runs, avg(timestampdiff(MILLISECOND, r.start_time, r.end_time)) / 1000 AS mean_seconds
FROM runs_latest r JOIN experiments_latest e ON r.experiment_id = e.experiment_id
WHERE r.end_time IS NOT NULL AND r.delete_time IS NULL
GROUP BY e.name
ORDER BY mean_seconds DESC
