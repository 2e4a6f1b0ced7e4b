-- What is in the trash, and since when.
SELECT 'run' AS kind, run_name AS name, delete_time FROM runs_latest WHERE delete_time IS NOT NULL
UNION ALL
SELECT 'experiment' AS kind, name, delete_time FROM experiments_latest WHERE delete_time IS NOT NULL
ORDER BY kind, name
