"""What HTTP costs: `prm-edge serve` beside the same calls in this process.

    python benchmarks/serve.py [-m PACKAGE] [--requests N] [--soak SECONDS]

Clients run in this process, on loopback, and share the machine with the server; their CPU is told
beside the server's own, from /metrics, and this process's own for score_many. Every answer is
compared with the in-process score of its own text, when a run is over. In-process and served runs
take turns, --rounds times, one thread for the model each; a ratio is of all of them together.
With --soak, 500 clients call as fast as they are let, and the server's memory is watched.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from prm_edge import Scorer

CLIENTS = (1, 8, 32, 128)
SOAK_CLIENTS = 500
SOAK_TEXTS = 200
MAX_DIFFERENCE = 1e-6  # answers have six decimals
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
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
    """What one crowd of clients saw. ``lost``: connections that ended before their answer."""

    seconds: float = 0.0
    server_s: float = 0.0
    clients_s: float = 0.0
    answers: list[tuple[int, int, bytes, float]] = field(default_factory=list)
    lost: int = 0

    @property
    def statuses(self) -> Counter[int]:
        return Counter(status for _, status, _, _ in self.answers)

    @property
    def latencies_ms(self) -> list[float]:
        return [ms for _, status, _, ms in self.answers if status == 200]

    def wrong(self, expected: Sequence[Sequence[float | None]]) -> int:
        """Answers that are not their own text's."""
        return sum(
            status == 200 and is_wrong(body, expected[index])
            for index, status, body, _ in self.answers
        )


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Client(asyncio.Protocol):
    """One keep-alive connection that asks again as soon as it is answered.

    As little of HTTP as needed, and no task: what the clients take, the server has not.
    """

    def __init__(self, run: Run, sent: Sequence[bytes], pick: Callable[[], int | None]) -> None:
        self._run, self._sent, self._pick = run, sent, pick
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self.done = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.ask()

    def ask(self) -> None:
        index = self._pick()
        if index is None:
            self.done.set_result(None)
            self._transport.close()
            return
        self._index, self._start_s = index, time.perf_counter()
        self._transport.write(self._sent[index])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        length = LENGTH.search(self._buffer, 0, end) if end > 0 else None
        if length is None or len(self._buffer) < end + 4 + int(length[1]):
            return
        ms = 1000 * (time.perf_counter() - self._start_s)
        status, body = int(self._buffer[9:12]), self._buffer[end + 4 :]
        self._run.answers.append((self._index, status, body, ms))
        self._buffer = b""
        if status == 200:
            self.ask()
        else:  # who is refused tries again when told to
            self._loop.call_later(1 + random.random(), self.ask)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._run.lost += 1
            self.done.set_result(None)


def get(port: int, path: str) -> bytes:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        return error.read()


def number_of(port: int, metric: str) -> float:
    found = re.search(rf"^{metric} (\S+)$", get(port, "/metrics").decode(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"/metrics has no {metric}")
    return float(found[1])


def is_wrong(answer: bytes, expected: Sequence[float | None]) -> bool:
    got = json.loads(answer)["scores"]
    return len(got) != len(expected) or any(
        a is None or b is None or abs(a - b) > MAX_DIFFERENCE
        for a, b in zip(got, expected, strict=True)
    )


def requests_of(items: Sequence[Item]) -> list[bytes]:
    bodies = [json.dumps({"problem": p, "steps": s}).encode() for p, s in items]
    head = (
        "POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Content-Length: {}\r\n\r\n"
    )
    return [head.format(len(body)).encode() + body for body in bodies]


async def crowd(port: int, items: Sequence[Item], clients: int) -> Run:
    """Each client asks for the next text as soon as it has its answer."""
    run, sent, left = Run(), requests_of(items), list(range(len(items)))[::-1]
    loop = asyncio.get_running_loop()
    server_s = number_of(port, "process_cpu_seconds_total")
    run.clients_s, start_s = -time.process_time(), time.perf_counter()
    asking = []
    for _ in range(clients):
        make = partial(Client, run, sent, lambda: left.pop() if left else None)
        asking.append((await loop.create_connection(make, "127.0.0.1", port))[1])
    await asyncio.gather(*(client.done for client in asking))
    run.seconds = time.perf_counter() - start_s
    run.clients_s += time.process_time()
    run.server_s = number_of(port, "process_cpu_seconds_total") - server_s
    return run


def latencies(port: int, scorer: Scorer, items: Sequence[Item]) -> tuple[list[float], list[float]]:
    """Milliseconds of the in-process call and of the served one, text by text."""
    inside, served = [], []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for item, sent in zip(items, requests_of(items), strict=True):
            start_s = time.perf_counter()
            scorer.score(*item)
            middle_s = time.perf_counter()
            connection.sendall(sent)
            answer = connection.recv(1 << 16)
            served.append(1000 * (time.perf_counter() - middle_s))
            inside.append(1000 * (middle_s - start_s))
            if not answer.startswith(b"HTTP/1.1 200") or not answer.endswith(b"}"):
                raise SystemExit(f"not a whole answer: {answer[:200]!r}")
    return inside, served


async def soak(port: int, items: Sequence[Item], seconds: float) -> Run:
    """Many clients for a while."""
    run, sent, end_s = Run(), requests_of(items), time.monotonic() + seconds
    loop = asyncio.get_running_loop()

    def pick() -> int | None:
        return random.randrange(len(sent)) if time.monotonic() < end_s else None

    asking = []
    for _ in range(SOAK_CLIENTS):
        made = await loop.create_connection(partial(Client, run, sent, pick), "127.0.0.1", port)
        asking.append(made[1])
    while (left_s := end_s - time.monotonic()) > 0:
        await asyncio.sleep(min(seconds / 8, left_s))
        held = await asyncio.to_thread(number_of, port, "process_resident_memory_bytes")
        print(f"  {seconds - max(0, end_s - time.monotonic()):5.0f} s: {held / 1e6:.1f} MB")
    await asyncio.gather(*(client.done for client in asking))
    run.seconds = seconds
    return run


def compare(port: int, scorer: Scorer, clients: int, requests: int, rounds: int) -> int:
    """Print one row of the table; how many answers were not what they should be."""
    items = solutions(requests)
    inside_s = inside_cpu_s = 0.0
    runs: list[Run] = []
    wrong = 0
    for _ in range(rounds):
        cpu_s, start_s = time.process_time(), time.perf_counter()
        expected = [result.scores for result in scorer.score_many(items)]
        inside_s += time.perf_counter() - start_s
        inside_cpu_s += time.process_time() - cpu_s
        runs.append(asyncio.run(crowd(port, items, clients)))
        wrong += runs[-1].wrong(expected) + runs[-1].lost + requests - runs[-1].statuses[200]
    count = rounds * requests
    seconds = sum(run.seconds for run in runs)
    ms = [value for run in runs for value in run.latencies_ms]
    cpu = [inside_cpu_s, sum(run.server_s for run in runs), sum(run.clients_s for run in runs)]
    ratio = inside_s / seconds
    print(
        f"{clients:7d}  {count / inside_s:12.1f}  {count / seconds:8.1f}  {ratio:5.2f}"
        + "".join(f"  {1000 * value / count:8.2f}" for value in cpu)
        + "".join(f"  {percentile(ms, share):7.1f}" for share in (0.5, 0.95, 0.99))
        + f"  {sum(run.statuses[429] for run in runs):3d} {wrong:5d}"
    )
    return wrong


def measure(port: int, scorer: Scorer, options: argparse.Namespace) -> bool:
    inside, served = latencies(port, scorer, solutions(300))
    for name, share in (("median", 0.5), ("fastest tenth", 0.1)):
        a, b = percentile(inside, share), percentile(served, share)
        print(f"one client, {name}: in-process {a:.2f} ms, served {b:.2f} ms")
    print(
        "clients  in-process/s  served/s  ratio  CPU ms: in-process, server, clients"
        "   p50 ms   p95 ms   p99 ms  429 wrong"
    )
    wrong = sum(
        compare(port, scorer, clients, options.requests, options.rounds) for clients in CLIENTS
    )
    if options.soak:
        print(f"{SOAK_CLIENTS} clients for {options.soak:g} s, the server's memory:")
        items = solutions(SOAK_TEXTS, seed=1)
        expected = [result.scores for result in scorer.score_many(items)]
        run = asyncio.run(soak(port, items, options.soak))
        told = ", ".join(f"{status}: {n}" for status, n in sorted(run.statuses.items()))
        bad = run.wrong(expected) + run.lost
        p99 = percentile(run.latencies_ms, 0.99)
        print(f"  answers {told}; wrong {bad}; p99 {p99:.0f} ms")
        wrong += bad + (run.statuses.total() - run.statuses[200] - run.statuses[429])
    return not wrong


@contextmanager
def server(package: str | None) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """``prm-edge serve`` on a free port, until it is ready; its log goes to a file."""
    named = ["-m", package] if package else []
    command = [sys.executable, "-m", "prm_edge", "serve", "--port", "0", "--threads", "1", *named]
    with tempfile.TemporaryFile("a+b") as log:  # appended to, wherever it is read
        process = subprocess.Popen(command, stderr=log)
        try:
            found = None
            while found is None:
                time.sleep(0.05)
                log.seek(0)
                found = re.search(rb":(\d+)\n", log.read())
                if process.poll() is not None:
                    raise SystemExit("the server did not start")
            while b"ready" not in get(int(found[1]), "/health"):
                time.sleep(0.05)
            yield int(found[1]), process
        finally:
            process.terminate()
            process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-m", "--package", help="default: the built-in one")
    parser.add_argument("--requests", type=int, default=1000, help="of one run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS")
    options = parser.parse_args()
    with (
        server(options.package) as (port, process),
        Scorer.load(options.package, threads=1) as scorer,
    ):
        good = measure(port, scorer, options)
    print(f"the server ended with {process.returncode}")
    sys.exit(0 if good and process.returncode == 0 else 1)


if __name__ == "__main__":
    main()
