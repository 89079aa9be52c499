"""Two hosts with addresses of their own, in network namespaces: ``make test-ray``, as root.

The second host sees neither the input, the output nor the package: a tmpfs lies over them there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("ray.data", reason="needs the ray extra")

import ray_cluster

from prm_edge.jobs import score_records
from prm_edge.records import read_lines
from prm_edge_runtime import Scorer


def may_make_namespaces() -> bool:
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"prm-edge-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "del", name], check=True)
    return made.returncode == 0


pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
    pytest.mark.skipif(not may_make_namespaces(), reason="needs root, and ip netns"),
]

HEAD, WORKER = "10.231.7.1", "10.231.7.2"
CUT_S = 10.0
RAY = Path(sys.executable).with_name("ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """Two namespaces, and a folder that the second does not see."""

    head: str
    worker: str
    data: Path

    def link(self, state: str) -> None:
        subprocess.run(["ip", "-n", self.head, "link", "set", "wire", state], check=True)


def inside(namespace: str, *command: object) -> list[str]:
    return ["ip", "netns", "exec", namespace, *map(str, command)]


@pytest.fixture
def hosts(tmp_path: Path, tiny_package: Path) -> Iterator[Hosts]:
    names = [f"prm-edge-{side}-{os.getpid()}" for side in ("head", "worker")]
    data = tmp_path / "data"
    data.mkdir()
    shutil.copytree(tiny_package, data / "pkg")
    processes: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    common = [
        "--num-cpus", "1", "--object-store-memory", str(ray_cluster.STORE_BYTES), "--block",
        "--disable-usage-stats",
    ]  # fmt: skip
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        pair = ["type", "veth", "peer", "name", "wire", "netns", names[1]]
        subprocess.run(["ip", "-n", names[0], "link", "add", "wire", *pair], check=True)
        for name, address in zip(names, (HEAD, WORKER), strict=True):
            subprocess.run(
                ["ip", "-n", name, "addr", "add", f"{address}/24", "dev", "wire"], check=True
            )
            subprocess.run(["ip", "-n", name, "link", "set", "wire", "up"], check=True)
        head = [
            RAY, "start", "--head", "--node-ip-address", HEAD, "--port", "6379",
            "--include-dashboard", "false", *common,
        ]  # fmt: skip
        # what the head has on its disk, the worker has not
        hide = (
            f"mount -t tmpfs none {data} && mkdir {data}/tmp && export TMPDIR={data}/tmp && "
            'exec "$@"'
        )
        worker = [
            "sh", "-c", hide, "sh", RAY, "start", "--address", f"{HEAD}:6379",
            "--node-ip-address", WORKER, *common,
        ]  # fmt: skip
        for name, command in zip(names, (head, worker), strict=True):
            processes.append(
                subprocess.Popen(
                    inside(name, *command),
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            time.sleep(5)  # the worker gives up when there is no head yet
        yield Hosts(head=names[0], worker=names[1], data=data)
    finally:
        for process in reversed(processes):
            process.terminate()  # ray start --block ends what it started
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def test_link_that_is_cut_for_a_while_loses_nothing(hosts: Hosts) -> None:
    source = ray_cluster.write_records(hosts.data / "in.jsonl", 1600)
    out = hosts.data / "out"
    command = [
        sys.executable, "-m", "prm_edge", "score", source, "-o", out, "-m", hosts.data / "pkg",
        "--engine", "ray", "--address", f"{HEAD}:6379", "--num-workers", "2",
        "--part-records", "40",
    ]  # fmt: skip
    cut = threading.Event()

    def cut_when_under_way() -> None:
        while len(list(out.glob("part-*"))) < 4:
            if process.poll() is not None:
                return
            time.sleep(0.1)
        hosts.link("down")
        time.sleep(CUT_S)
        cut.set()
        hosts.link("up")

    process = subprocess.Popen(
        inside(hosts.head, *command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    thread = threading.Thread(target=cut_when_under_way)
    thread.start()
    _, stderr = process.communicate(timeout=580)
    thread.join()
    assert process.returncode == 3, stderr
    assert cut.is_set(), "the job was over before the link was cut"
    with Scorer.load(hosts.data / "pkg") as scorer, source.open("rb") as stream:
        local = [x.to_json() for x in score_records(scorer, read_lines(stream), ahead=True)]
    assert b"".join(p.read_bytes() for p in sorted(out.glob("part-*"))) == b"".join(local)
