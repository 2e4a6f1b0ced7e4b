"""What a scheduled job runs: one function per job, plain arguments in, a small result dataclass out."""
