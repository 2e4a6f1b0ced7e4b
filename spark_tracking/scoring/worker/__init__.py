"""What runs in Spark's Python workers. It needs no Delta library and nothing of the driver's."""
