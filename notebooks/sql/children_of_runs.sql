-- Searches and their trials: how many child runs each parent has, and how many of them failed.
SELECT p.run_name AS parent, count(*) AS children, sum(CASE WHEN c.status = 'FAILED' THEN 1 ELSE 0 END) AS failed
FROM runs_latest c JOIN runs_latest p ON c.tags['mlflow.parentRunId'] = p.run_id
WHERE c.delete_time IS NULL
GROUP BY p.run_name
ORDER BY children DESC, parent
