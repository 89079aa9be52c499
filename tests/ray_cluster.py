"""A Ray cluster of several nodes on this machine, and its workers as processes: for tests alone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STORE_BYTES = 100 << 20
# no dashboard and no token in the user's home
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray would give way to whatever else runs on the machine, and the tests would wait for hours
os.environ.setdefault("RAY_worker_niceness", "0")


@contextlib.contextmanager
def started(nodes: int, *, cpus: int = 1) -> Iterator[Any]:
    """A cluster of so many nodes, the head one of them, and this process its driver."""
    import ray
    from ray.cluster_utils import Cluster

    options = {"num_cpus": cpus, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            add_node(cluster, cpus=cpus)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def add_node(cluster: Any, *, cpus: int = 1) -> Any:
    """One more node. Ray gives one half a minute to start, which a busy machine may not."""
    for last in (False, False, True):
        try:
            return cluster.add_node(num_cpus=cpus, object_store_memory=STORE_BYTES)
        except Exception as error:
            if last or "timed out during startup" not in str(error):
                raise
    raise AssertionError


def workers(cluster: Any) -> dict[int, Any]:
    """The processes that score, and the node that each is on; only those of this cluster."""
    raylets = {raylet_pid(node): node for node in cluster.list_all_nodes()}
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError):
            title = (entry / "cmdline").read_bytes()
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if title.startswith(b"ray::MapWorker") and parent in raylets:
                found[int(entry.name)] = raylets[parent]
    return found


def raylet_pid(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


@contextlib.contextmanager
def meanwhile(ready: Callable[[], bool], act: Callable[[], None]) -> Iterator[list[str]]:
    """Do something, once, as soon as it is time, while the block runs; yields what was done."""
    done: list[str] = []
    over = threading.Event()

    def wait() -> None:
        while not over.is_set():
            with contextlib.suppress(AttributeError):  # a node that is starting or stopping
                if ready():
                    act()
                    done.append("acted")
                    return
            time.sleep(0.05)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def held(cluster: Any) -> Iterator[None]:
    """Let the workers stand still, so that what else happens is not starved by them."""
    still = list(workers(cluster))
    for pid in still:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in still:
            os.kill(pid, signal.SIGCONT)


def kill_one(cluster: Any) -> None:
    os.kill(next(iter(workers(cluster))), signal.SIGKILL)


def write_records(path: Path, count: int, *, seed: int = 0, hostile: bool = True) -> Path:
    """Records of every kind, some of which cannot be scored."""
    chance = random.Random(seed)
    odd = [
        b"not json",
        b"",
        b'{"id": 5, "problem": "p", "steps": "one string"}',
        b'{"id": 5, "id": 6, "problem": "p", "steps": []}',
        b'{"problem": "\xff"}',
        b'{"id": "\\ud800", "problem": "Solve 2x = 4", "steps": ["x = 2"]}',
        b'{"id": 7.5, "problem": "p", "candidates": [["x = 1", "so"], ["x = 2"]]}',
        b'{"id": null, "problem": "Solve 2x = 4", "response": "x = 2\\n\\nso x = 2"}',
        '{"id": "é", "prompt": "Löse 2x = 4", "completions": ["x = 2"], "labels": [true]}'.encode(),
    ]
    with path.open("wb") as stream:
        for number in range(count):
            if hostile and number % 11 == 3:
                stream.write(odd[number // 11 % len(odd)] + b"\r\n")
                continue
            steps = [f"x = {chance.randrange(99)}" for _ in range(chance.randrange(1, 6))]
            record = {"id": number, "problem": f"Solve 2x = {number}", "steps": steps}
            stream.write(json.dumps(record).encode() + b"\n")
    return path
