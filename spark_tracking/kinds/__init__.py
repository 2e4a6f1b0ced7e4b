"""What the things of a tracking server are: one table of kinds, which every other room asks.

`catalog` is the table; `shapes` says how a fact stands in the log, in a column and in MLflow's classes; `state` folds events.
"""
