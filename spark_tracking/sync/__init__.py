"""Any tracking server into a lake, and any source into a server; again and again, cheaply and exactly. See `sync`.

Example:
    >>> import spark_tracking as st
    >>> st.sync("http://mlflow:5000", "delta:///shared/lake").ok
    True
"""

from spark_tracking.callable_module import make_callable
from spark_tracking.sync.result import Failure as Failure
from spark_tracking.sync.result import SyncResult as SyncResult
from spark_tracking.sync.result import Tally as Tally
from spark_tracking.sync.run import sync as sync

__all__ = ["Failure", "SyncResult", "Tally", "sync"]

make_callable(__name__, sync)  # as `spark_tracking.sync`
