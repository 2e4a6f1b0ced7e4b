"""Any tracking server into a lake, and a lake into any server; again and again, cheaply and exactly. See `sync`."""

from spark_tracking.sync.result import Failure as Failure
from spark_tracking.sync.result import SyncResult as SyncResult
from spark_tracking.sync.result import Tally as Tally
from spark_tracking.sync.run import sync as sync

__all__ = ["Failure", "SyncResult", "Tally", "sync"]
