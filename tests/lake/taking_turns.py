"""An actor of `test_old_and_new`: does with a lake what each line of its input says, and answers with a line of JSON.

`python taking_turns.py <lake uri>`, by whichever version of the package is on the path; so it asks only for what all of them have.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["SPARK_TRACKING_FLUSH_SECONDS"] = "3600"  # what happens, happens when a line says so

from spark_tracking.lake import Event, Lake, MetricBlock

NEW = {"created": "1", "experiment_id": "0", "status": "RUNNING", "start_time": "1", "lifecycle_stage": "active"}


def do(lake: Lake, call: str, run: str = "", steps: list[int] | None = None, tag: str | None = None) -> Any:
    """One call; steps are logged as points of one metric, with the step as value."""
    if call == "create":
        return lake.write([Event("run", run, "attr", key, value) for key, value in NEW.items()])
    if call == "write":
        events = [] if tag is None else [Event("run", run, "tag", "t", tag)]
        values = [float(step) for step in steps or ()]
        return lake.write(events, [MetricBlock(run, "0", ["m"] * len(values), values, [1] * len(values), steps or [])])
    if call == "read":
        entity = lake.get("run", run)
        assert entity is not None
        latest = entity.metrics["m"].latest.step if entity.metrics else None
        return [entity.items("tag").get("t"), latest, sorted(lake.metric_history(run)["metric_step"].to_pylist())]
    if call == "find":
        return sorted(entity.id for entity in lake.search("run"))
    if call == "check":
        return lake.check().problems
    getattr(lake, call)()
    return None


def main() -> None:
    lake = Lake.open(sys.argv[1], create=True)
    for line in sys.stdin:
        print(json.dumps(do(lake, *json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
