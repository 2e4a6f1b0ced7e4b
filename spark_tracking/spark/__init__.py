"""What is known of a Spark session and its processes: which kind it is, what its workers run and lack, how they get it, a local one.

pyspark is imported when a function is called, never with a module.
"""
