"""The cluster: connect to one, ask what it has, and say in one sentence what went wrong there.

ray is imported inside functions, after its usage statistics are off.
"""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from prm_edge_runtime.errors import ClusterError, ConfigError, PrmEdgeError
from prm_edge_runtime.version import __version__

USAGE: Final = "RAY_USAGE_STATS_ENABLED"
START_S: Final = 600.0  # until some node has started a worker; an autoscaler may add one meanwhile
OWN_START_S: Final = 60.0  # a cluster of this machine alone gets no more nodes
PATIENCE_S: Final = 10.0  # after which it is said what is waited for
TASK_RETRIES: Final = 3  # of what runs before the workers
# Of one worker. A call to a worker that restarts, or that cannot be reached for a while, may be
# made again without end; what kills its worker each time is a fault, and ends the job.
RESTARTS: Final = 8
CONNECT_S: Final = 10.0
HOST_PORT: Final = re.compile(r"([A-Za-z0-9._-]+):([0-9]{1,5})")
LOGGERS: Final = ("ray", "ray.data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """What one worker takes of its node."""

    cpus: float
    gpus: float
    memory_bytes: int

    def resources(self) -> dict[str, Any]:
        """As Ray's own options."""
        gpus = {"num_gpus": self.gpus} if self.gpus else {}
        return {"num_cpus": self.cpus, "memory": self.memory_bytes, **gpus}

    def fits(self, resources: dict[str, float]) -> int:
        """How many have room in what a node has in all."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory_bytes)}
        return min(
            math.floor(resources.get(name, 0.0) / amount)
            for name, amount in wanted.items()
            if amount
        )

    def __str__(self) -> str:
        gpus = f"{_some(self.gpus, 'GPU')}, " if self.gpus else ""
        return f"{_some(self.cpus, 'CPU')}, {gpus}{self.memory_bytes / 1e9:.1f} GB of memory"


def load_ray() -> Any:
    """Import ray with its usage statistics off, unless the environment says otherwise.

    Raises:
        ConfigError: when it, or what Ray Data needs, is not installed.
    """
    os.environ.setdefault(USAGE, "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(
            f"the ray engine needs the extra ray ({error}): pip install 'prm-edge[ray]', on every "
            "node of the cluster"
        ) from None
    return ray


@contextmanager
def connected(address: str | None, *, quiet: bool) -> Iterator[Any]:
    """Be a driver of a cluster while the block runs; where there is none, of one made for it.

    ``address``: as ``ray.init`` takes it. A connection that is there already is used and kept.

    Raises:
        ConfigError: for the address of a Ray client.
        ClusterError: when the cluster cannot be reached.
    """
    ray = load_ray()
    if (address or os.environ.get("RAY_ADDRESS", "")).startswith("ray://"):
        raise ConfigError(
            "ray:// is the address of a Ray client, whose files are on another machine than the "
            "job's: run the command on a node of the cluster with --address auto, or send it "
            "there with ray job submit"
        )
    if ray.is_initialized():
        yield ray
        return
    _check_reachable(address or os.environ.get("RAY_ADDRESS", ""))
    level = logging.WARNING if quiet else logging.INFO
    for name in LOGGERS:
        logging.getLogger(name).setLevel(level)
    try:
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=not quiet,
            logging_level=level,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise ClusterError(f"no Ray cluster can be reached at {where}: {in_short(error)}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuse an address where nobody listens: Ray itself would end the process without a word."""
    found = HOST_PORT.fullmatch(address)
    if found is None:
        return
    try:
        with socket.create_connection((found[1], int(found[2])), CONNECT_S):
            return
    except OSError as error:
        reason = error.strerror or str(error)
        raise ClusterError(f"no Ray cluster can be reached at {address}: {reason}") from None


def room(ray: Any, worker: Worker) -> int:
    """How many such workers the nodes that are there now have room for."""
    return sum(worker.fits(node["Resources"]) for node in ray.nodes() if node["Alive"])


def first_answer(
    ray: Any, worker: Worker, call: Callable[[], Any], *, grows: bool, say: Callable[[str], None]
) -> Any:
    """Run something where a worker will run, and wait for a node that has the room.

    ``grows``: nodes may be added to the cluster.

    Raises:
        ClusterError: when no node has it in time.
        PrmEdgeError: what ``call`` raises.
    """
    # an actor would be counted as a worker; a task gives its place back
    asked = ray.remote(max_retries=TASK_RETRIES, **worker.resources())(call).remote()
    start_s, told = time.monotonic(), False
    limit_s = START_S if grows else OWN_START_S
    while not ray.wait([asked], timeout=PATIENCE_S)[0]:
        if time.monotonic() - start_s > limit_s and not room(ray, worker):
            ray.cancel(asked, force=True)
            raise ClusterError(
                f"no node of the cluster has room for one worker ({worker}); the cluster has "
                f"{describe_nodes(ray)}: add nodes, or ask for less with --threads, "
                "--gpus-per-worker or --memory-per-worker"
            )
        if not told:
            say(f"waiting for a node with {worker}")
            told = True
    try:
        return ray.get(asked)
    except Exception as error:
        raise translated(ray, error) from error


def describe_nodes(ray: Any) -> str:
    """What the nodes have, in words."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shown = [
        f"{_some(n.get('CPU', 0), 'CPU')}, {_some(n.get('GPU', 0), 'GPU')}, "
        f"{n.get('memory', 0) / 1e9:.1f} GB"
        for n in nodes[:8]
    ]
    more = f" and {len(nodes) - len(shown)} more" if len(nodes) > len(shown) else ""
    return f"{_some(len(nodes), 'node')} ({'; '.join(shown)}{more})"


def _some(count: float, what: str) -> str:
    return f"{count:g} {what}{'' if count == 1 else 's'}"


def translated(ray: Any, error: BaseException) -> PrmEdgeError:
    """What went wrong on a node, as one sentence: our own error, or what Ray says."""
    chain = _chain(error)
    for found in chain:
        if isinstance(found, PrmEdgeError) and not isinstance(found, ray.exceptions.RayError):
            return found
    for found in chain:
        if isinstance(found, ModuleNotFoundError) or "No module named 'prm_edge" in str(found):
            return ClusterError(
                "a node of the cluster cannot import prm-edge: install the same on every node, "
                f"pip install 'prm-edge[cpu,ray]=={__version__}'"
            )
    deaths = (
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.RayActorError,
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
    )
    if any(isinstance(found, deaths) for found in chain):
        return ClusterError(
            f"a worker died more than {RESTARTS} times, most often because its node ran out of "
            "memory: give each more with --memory-per-worker, or fewer to a node with --threads "
            f"({in_short(chain[0])})"
        )
    return ClusterError(f"the Ray job failed: {in_short(chain[-1])}")


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    ahead: list[Any] = [error]
    while ahead:
        one = ahead.pop(0)
        if isinstance(one, BaseException) and one not in found:
            found.append(one)
            ahead += [getattr(one, "cause", None), one.__cause__, one.__context__]
    return found


def in_short(error: BaseException) -> str:
    """The last line of what an error says: with Ray, the one that is about the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
