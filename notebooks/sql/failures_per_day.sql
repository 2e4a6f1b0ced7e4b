-- Reliability over time: the share of runs that failed, by day of their start.
SELECT date_trunc('DAY', start_time) AS day, count(*) AS runs, avg(CASE WHEN status = 'FAILED' THEN 1.0 ELSE 0.0 END) AS failed_share
FROM runs_latest
WHERE delete_time IS NULL
GROUP BY date_trunc('DAY', start_time)
ORDER BY day
