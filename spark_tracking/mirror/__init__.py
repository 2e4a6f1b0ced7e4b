"""Any tracking server into a lake, and any source into a server; again and again, cheaply and exactly. See `sync`.

Example:
    >>> import spark_tracking as st
    >>> st.sync("http://mlflow:5000", "delta:///shared/lake").ok
    True
"""

from spark_tracking.mirror.entrance import follow as follow
from spark_tracking.mirror.entrance import sync as sync
from spark_tracking.mirror.result import Failure as Failure
from spark_tracking.mirror.result import SyncResult as SyncResult
from spark_tracking.mirror.result import Tally as Tally

__all__ = ["Failure", "SyncResult", "Tally", "follow", "sync"]
