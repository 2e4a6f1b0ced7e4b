"""The lake: a journal for small writes, Delta tables for everything else. See `lake.lake.Lake`."""

from spark_tracking.kinds.state import Entity as Entity
from spark_tracking.kinds.state import Event as Event
from spark_tracking.kinds.state import MetricBlock as MetricBlock
from spark_tracking.lake.lake import Lake as Lake

__all__ = ["Entity", "Event", "Lake", "MetricBlock"]
