"""Delta tables, the folder or object store that they lie in, and SQL over them; alone in importing deltalake, datafusion and obstore."""
