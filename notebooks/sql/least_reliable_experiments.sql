-- Which experiments are the least reliable: the share of their ended runs that failed or were killed, the worst first.
SELECT e.name, count(*) AS ended, avg(CASE WHEN r.status = 'FINISHED' THEN 0.0 ELSE 1.0 END) AS failed_share
FROM runs_latest r JOIN experiments_latest e ON r.experiment_id = e.experiment_id
WHERE r.delete_time IS NULL AND r.end_time IS NOT NULL
GROUP BY e.name
ORDER BY failed_share DESC, e.name
