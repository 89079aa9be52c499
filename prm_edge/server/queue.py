"""Who is next: a queue that many clients share by tokens, and that is bounded.

Start-time fair queueing. Each client has a clock that its own tokens advance, and the client whose
clock is furthest behind is next. One that has waited for nothing starts at the clock of whoever is
served, so nobody saves up a turn, and nobody who sends more gets more. A request's tokens are an
estimate when it comes and are put right when it has run. The event loop puts and discards, the
model's thread takes and settles: it has its next batch without asking the loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from .limits import Limits
from .refusals import RefusedError

MIN_TOKENS: Final = 8  # what a job costs its client at the least


@dataclass(slots=True, kw_only=True, eq=False)
class Solution:
    """A problem and its steps; ``prepared``: as the scorer prepared it, None where it is long."""

    problem: str
    steps: tuple[str, ...]
    prepared: Any = None


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """Work that waits.

    ``work``: a solution, which may run together with others, or what is called in the worker's
    thread and returns a result and the tokens it ran. ``finished`` is called on the loop once
    nothing will touch the job any more.
    """

    client: str
    tokens: int
    done: asyncio.Future[Any]
    queued_s: float
    work: Solution | Callable[[], tuple[Any, int]]
    finished: Callable[[], None] | None = None


@dataclass(slots=True, kw_only=True)
class _Client:
    clock: float
    jobs: dict[Job, None] = field(default_factory=dict)  # in order, and any of them goes at once
    tokens: int = 0


class FairQueue:
    """Jobs of many clients within ``queue_requests`` and ``queue_tokens``."""

    def __init__(self, limits: Limits) -> None:
        self._limits: Final = limits
        self._clients: dict[str, _Client] = {}
        self._clock = 0.0
        self._changed = threading.Condition()  # its lock holds everything here together
        self._closed = False
        self.requests = 0
        self.tokens = 0

    def __len__(self) -> int:
        return self.requests

    @property
    def clients(self) -> int:
        """Clients that are remembered, those with nothing waiting included."""
        return len(self._clients)

    def put(self, job: Job, *, retry_after_s: Callable[[], int] = lambda: 1) -> None:
        """Let a job wait for its turn.

        Raises:
            RefusedError: when the queue, or this client's part of it, is full, or it is closed.
        """
        with self._changed:
            self._put(job, retry_after_s)
            self._changed.notify()

    def _put(self, job: Job, retry_after_s: Callable[[], int]) -> None:
        if self._closed:
            raise RefusedError("not_ready", "the server is stopping; nothing was run")
        limits, client = self._limits, self._clients.get(job.client)
        whose = "the queue is"
        full = (
            self.requests >= limits.queue_requests
            # alone, any request that is allowed fits
            or (self.requests > 0 and self.tokens + job.tokens > limits.queue_tokens)
        )
        if not full and client is not None and client.jobs:
            whose = "your part of the queue is"
            full = len(client.jobs) >= limits.share(limits.queue_requests) or (
                client.tokens + job.tokens > limits.share(limits.queue_tokens)
            )
        if full:
            raise RefusedError(
                "busy",
                f"{whose} full ({self.requests} requests, about {self.tokens} tokens); nothing "
                "was run: send it again later",
                retry_after_s=retry_after_s(),
            )
        if client is None:
            client = self._clients[job.client] = _Client(clock=self._clock)
        if not client.jobs:
            client.clock = max(client.clock, self._clock)
        client.jobs[job] = None
        client.tokens += job.tokens
        self.requests += 1
        self.tokens += job.tokens

    def discard(self, job: Job) -> bool:
        """Take a job out that nobody waits for any more; False when it has left already."""
        with self._changed:
            client = self._clients.get(job.client)
            if client is None or job not in client.jobs:
                return False
            self._remove(client, job)
            return True

    def take(self, tokens: int | None = None) -> list[Job]:
        """Wait for work; return jobs of up to so many tokens, at least one, in fair order.

        ``tokens``: ``batch_tokens`` if None. No job, and for ever none, once it is closed.
        """
        with self._changed:
            while not self.requests and not self._closed:
                self._changed.wait()
            return self._batch(self._limits.batch_tokens if tokens is None else tokens)

    def close(self) -> list[Job]:
        """Take and give nothing more; return what waits, which nobody will run."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            waiting = [job for client in self._clients.values() for job in client.jobs]
            for job in waiting:
                self._remove(self._clients[job.client], job)
            return waiting

    def _batch(self, most: int) -> list[Job]:
        taken: list[Job] = []
        tokens = 0
        while self.requests:
            # the first of equals is the one that was remembered first
            client = min((c for c in self._clients.values() if c.jobs), key=lambda c: c.clock)
            job = next(iter(client.jobs))
            if taken and tokens + job.tokens > most:
                break
            self._remove(client, job)
            self._clock = client.clock
            client.clock += job.tokens
            tokens += job.tokens
            taken.append(job)
        self._forget()
        return taken

    def settle(self, job: Job, tokens: int) -> None:
        """Put right what a job cost its client, now that it is known.

        No job is for nothing: whoever only asks for what is cached would never let others in.
        """
        with self._changed:
            client = self._clients.get(job.client)
            if client is not None:
                client.clock += max(tokens, MIN_TOKENS) - job.tokens

    def _remove(self, client: _Client, job: Job) -> None:
        del client.jobs[job]
        client.tokens -= job.tokens
        self.requests -= 1
        self.tokens -= job.tokens

    def _forget(self) -> None:
        """Drop clients that would start where a new one starts."""
        for name, client in list(self._clients.items()):
            if not client.jobs and client.clock <= self._clock:
                del self._clients[name]
        # nobody waits, and what was served is paid for: everyone may start anew
        if not self.requests and len(self._clients) > self._limits.queue_requests:
            self._clients.clear()
