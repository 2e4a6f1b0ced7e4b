-- Where the work happens: runs, failures and the last start by experiment.
SELECT e.name, count(*) AS runs, sum(CASE WHEN r.status = 'FAILED' THEN 1 ELSE 0 END) AS failed, max(r.start_time) AS last_start
FROM runs_latest r JOIN experiments_latest e ON r.experiment_id = e.experiment_id
WHERE r.delete_time IS NULL
GROUP BY e.name
ORDER BY runs DESC, e.name
