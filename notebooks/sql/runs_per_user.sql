-- Who tracks how much: runs and experiments by user.
SELECT created_by, count(*) AS runs, count(DISTINCT experiment_id) AS experiments
FROM runs_latest
WHERE delete_time IS NULL
GROUP BY created_by
ORDER BY runs DESC, created_by
