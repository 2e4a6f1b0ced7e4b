-- The runs that were made with one value of a param, here lr = 0.3, and how they ended.
SELECT run_id, run_name, status, params['lr'] AS lr
FROM runs_latest
WHERE delete_time IS NULL AND params['lr'] = '0.3'
ORDER BY start_time
