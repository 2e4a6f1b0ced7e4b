"""Any tracking server as Arrow record batches, in bulk and without Spark. See `read`."""

from spark_tracking.readers.opening import open_reader as open_reader
from spark_tracking.readers.opening import read as read
from spark_tracking.readers.query import Query as Query
from spark_tracking.readers.query import Range as Range

__all__ = ["Query", "Range", "open_reader", "read"]
