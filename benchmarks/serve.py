"""What HTTP costs: `prm-edge serve` beside the same calls in this process.

    python benchmarks/serve.py [-m PACKAGE] [--requests N] [--soak SECONDS]

Clients run in this process, on loopback, and share the machine with the server. Every answer is
compared with the in-process score of its own text. In-process and served runs take turns, one
thread for the model each; a ratio is of runs beside each other. CPU is the server's own, from
/metrics, beside this process's own for score_many: other work disturbs it least.
With --soak, 500 clients call as fast as they are let, and the server's memory is watched.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from prm_edge import Scorer

CLIENTS = (1, 8, 32, 128)
SOAK_CLIENTS = 500
SOAK_TEXTS = 200
MAX_DIFFERENCE = 1e-6  # answers have six decimals
Item = tuple[str, list[str]]


def solutions(count: int, seed: int = 0) -> list[Item]:
    """Worked equations, about half of them with a wrong step."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        a, x, b = rng.randint(2, 12), rng.randint(-12, 12), rng.randint(1, 40)
        c = a * x + b
        wrong = rng.choice([0, 0, 0, 1, 2])
        steps = [
            f"{a}x + {b} - {b} = {c} - {b}",
            f"{a}x = {c - b + wrong}",
            f"x = {(c - b)} / {a}",
            f"x = {x + wrong}",
        ]
        found.append((f"Solve for x: {a}x + {b} = {c}.", steps))
    return found


@dataclass(kw_only=True)
class Run:
    """What one crowd of clients saw."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Connection:
    """One keep-alive connection, with as little of HTTP as needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> tuple[int, bytes]:
        head = (
            "POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return await self._ask(head.encode() + body)

    async def get(self, path: str) -> bytes:
        return (await self._ask(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()))[1]

    async def _ask(self, sent: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(sent)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length[1]) if length else 0)
        if b"connection: close" in head.lower():
            self.close()
        return int(head[9:12]), body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def number_of(port: int, metric: str) -> float:
    connection = Connection(port)
    text = (await connection.get("/metrics")).decode()
    connection.close()
    found = re.search(rf"^{metric} (\S+)$", text, re.MULTILINE)
    if found is None:
        raise SystemExit(f"/metrics has no {metric}")
    return float(found[1])


def is_wrong(answer: bytes, expected: Sequence[float | None]) -> bool:
    got = json.loads(answer)["scores"]
    return len(got) != len(expected) or any(
        a is None or b is None or abs(a - b) > MAX_DIFFERENCE
        for a, b in zip(got, expected, strict=True)
    )


def bodies(items: Sequence[Item]) -> list[bytes]:
    return [json.dumps({"problem": p, "steps": s}).encode() for p, s in items]


async def crowd(
    port: int, items: Sequence[Item], expected: Sequence[Sequence[float | None]], clients: int
) -> Run:
    """Each client asks for the next text as soon as it has its answer."""
    run, waiting = Run(), list(enumerate(bodies(items)))[::-1]

    async def client() -> None:
        connection = Connection(port)
        while waiting:
            index, body = waiting.pop()
            start_s = time.perf_counter()
            status, answer = await connection.post(body)
            run.latencies_ms.append(1000 * (time.perf_counter() - start_s))
            run.statuses[status] += 1
            run.wrong += status == 200 and is_wrong(answer, expected[index])
        connection.close()

    cpu_s = await number_of(port, "process_cpu_seconds_total")
    start_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    run.seconds = time.perf_counter() - start_s
    run.cpu_s = await number_of(port, "process_cpu_seconds_total") - cpu_s
    return run


async def latencies(
    port: int, scorer: Scorer, items: Sequence[Item]
) -> tuple[list[float], list[float]]:
    """Milliseconds of the in-process call and of the served one, text by text, sorted."""
    connection, inside, served = Connection(port), [], []
    for (problem, steps), body in zip(items, bodies(items), strict=True):
        start_s = time.perf_counter()
        scorer.score(problem, steps)
        middle_s = time.perf_counter()
        await connection.post(body)
        end_s = time.perf_counter()
        inside.append(1000 * (middle_s - start_s))
        served.append(1000 * (end_s - middle_s))
    connection.close()
    return sorted(inside), sorted(served)


async def soak(port: int, scorer: Scorer, seconds: float) -> Run:
    """Many clients for a while; who is refused tries again when told to."""
    items = solutions(SOAK_TEXTS, seed=1)
    expected = [result.scores for result in scorer.score_many(items)]
    sent, run, end_s = bodies(items), Run(), time.monotonic() + seconds

    async def client(number: int) -> None:
        connection, rng = Connection(port), random.Random(number)
        while time.monotonic() < end_s:
            index = rng.randrange(len(sent))
            start_s = time.perf_counter()
            status, answer = await connection.post(sent[index])
            run.statuses[status] += 1
            if status == 200:
                run.latencies_ms.append(1000 * (time.perf_counter() - start_s))
                run.wrong += is_wrong(answer, expected[index])
            else:
                await asyncio.sleep(1 + rng.random())
        connection.close()

    async def watch() -> None:
        while (left_s := end_s - time.monotonic()) > 0:
            await asyncio.sleep(min(seconds / 8, left_s))
            megabytes = await number_of(port, "process_resident_memory_bytes") / 1e6
            print(f"  {seconds - max(0, end_s - time.monotonic()):5.0f} s: {megabytes:.1f} MB")

    await asyncio.gather(watch(), *(client(number) for number in range(SOAK_CLIENTS)))
    run.seconds = seconds
    return run


async def measure(port: int, scorer: Scorer, requests: int, soak_s: float) -> bool:
    items = solutions(requests)
    expected = [result.scores for result in scorer.score_many(items)]
    inside, served_ms = await latencies(port, scorer, items)
    for name, at in (("median", len(items) // 2), ("fastest tenth", len(items) // 10)):
        print(f"one client, {name}: in-process {inside[at]:.2f} ms, served {served_ms[at]:.2f} ms")
    print(
        "clients  in-process/s  served/s  ratio  CPU ms in-process, served"
        "   p50 ms   p95 ms   p99 ms  429 wrong"
    )
    wrong = 0
    for clients in CLIENTS:
        cpu_s, start_s = time.process_time(), time.perf_counter()
        scorer.score_many(items)
        seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
        run = await crowd(port, items, expected, clients)
        wrong += run.wrong + (run.statuses.total() - run.statuses[200])
        served = run.statuses[200] / run.seconds
        print(
            f"{clients:7d}  {requests / seconds:12.1f}  {served:8.1f}  "
            f"{served * seconds / requests:5.2f}  {1000 * cpu_s / requests:17.2f}  "
            f"{1000 * run.cpu_s / requests:6.2f}  "
            f"{run.percentile(0.5):7.1f}  {run.percentile(0.95):7.1f}  {run.percentile(0.99):7.1f}"
            f"  {run.statuses[429]:3d} {run.wrong:5d}"
        )
    if soak_s:
        print(f"{SOAK_CLIENTS} clients for {soak_s:g} s, the server's memory:")
        run = await soak(port, scorer, soak_s)
        told = ", ".join(f"{status}: {n}" for status, n in sorted(run.statuses.items()))
        print(f"  answers {told}; wrong {run.wrong}; p99 {run.percentile(0.99):.0f} ms")
        wrong += run.wrong + (run.statuses.total() - run.statuses[200] - run.statuses[429])
    return not wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-m", "--package", help="default: the built-in one")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS")
    options = parser.parse_args()
    named = ["-m", options.package] if options.package else []
    server = subprocess.Popen(
        [sys.executable, "-m", "prm_edge", "serve", "--port", "0", "--threads", "1", *named],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if server.stderr is None:
            raise SystemExit("the server has no stderr")
        found = re.search(r":(\d+)$", server.stderr.readline().strip())
        if found is None:
            raise SystemExit(server.stderr.read())
        # somebody must read its log, or it waits for that
        subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
        with Scorer.load(options.package, threads=1) as scorer:
            port = int(found[1])
            while b"ready" not in asyncio.run(Connection(port).get("/health")):
                time.sleep(0.05)
            good = asyncio.run(measure(port, scorer, options.requests, options.soak))
    finally:
        server.terminate()
        server.wait(60)
    print(f"the server ended with {server.returncode}")
    sys.exit(0 if good and server.returncode == 0 else 1)


if __name__ == "__main__":
    main()
