"""Programs that show the product: what `spark-tracking demo` runs, and a search in Spark tasks."""
