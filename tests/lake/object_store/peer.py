"""Another process on a lake: `python peer.py URI ROLE [ARGUMENT …]`. What it prints was acknowledged before."""

from __future__ import annotations

import os
import sys
import threading
import time

from spark_tracking.lake import Event, Lake, MetricBlock

START = 1_700_000_000_000


def block(run: str, step: int) -> MetricBlock:
    return MetricBlock(run, "0", ["loss"], [float(step)], [START + step], [step])


def log(lake: Lake, run: str, count: str) -> None:
    """Log one point after the other."""
    created = {"created": str(START), "experiment_id": "0", "status": "RUNNING", "lifecycle_stage": "active"}
    lake.write([Event("run", run, "attr", key, value) for key, value in created.items()])
    for step in range(int(count)):
        lake.write([Event("run", run, "tag", "step", str(step))], [block(run, step)])
        print(step, flush=True)


def log_and_die(lake: Lake, run: str, count: str) -> None:
    """The same, and then end as by kill -9."""
    log(lake, run, count)
    os.kill(os.getpid(), 9)


def linger(lake: Lake, run: str, seconds: str) -> None:
    """Log a point, and end a while later."""
    log(lake, run, "1")
    time.sleep(float(seconds))


def flush(lake: Lake, seconds: str) -> None:
    """Flush all the time, without asking who leads."""
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        lake._upkeep._flush()
    print("done", flush=True)


def lead_and_die(lake: Lake) -> None:
    """Be killed while holding the lease."""
    with lake._files.leadership(wait=True):
        print("leads", flush=True)
        os.kill(os.getpid(), 9)


def take(lake: Lake, *names: str) -> None:
    """Create experiments, unless there are such; print those that this process made."""
    for name in names:
        made = []

        def create(name: str = name, made: list[str] = made) -> list[Event]:
            made.clear()
            if lake.count("experiment", f"name = '{name}'"):
                return []
            id = str(lake.count("experiment"))
            made.append(f"{name}={id}")
            return [Event("experiment", id, "attr", key, value) for key, value in {"created": str(START), "name": name}.items()]

        lake.commit(create)
        print(*made, flush=True)


def fork(lake: Lake, run: str) -> None:
    """Log from this process, then from a forked child."""
    log(lake, run, "1")
    child = os.fork()
    if child == 0:
        lake.write([Event("run", run, "tag", "from", "child")])
        print(lake.get("run", run).fields["tag"]["step"].value, flush=True)  # type: ignore[union-attr]
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)


def threads(lake: Lake, run: str, count: str, calls: str) -> None:
    """Log from many threads at once."""
    log(lake, run, "1")

    def work(number: int) -> None:
        for call in range(int(calls)):
            lake.write([Event("run", run, "tag", f"{number}.{call}", "x")])

    workers = [threading.Thread(target=work, args=(number,)) for number in range(int(count))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print("done", flush=True)


ROLES = {
    "log": log,
    "log-and-die": log_and_die,
    "linger": linger,
    "flush": flush,
    "lead-and-die": lead_and_die,
    "take": take,
    "fork": fork,
    "threads": threads,
}

if __name__ == "__main__":
    uri, role, *arguments = sys.argv[1:]
    ROLES[role](Lake.open(uri, create=True), *arguments)
