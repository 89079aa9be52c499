"""One thread that has the model: takes batches out of the queue and runs them.

The loop never waits for the model. A job that has begun is finished and answered; one that has not
is dropped when its deadline passes or its client goes, and is never run.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeAlias

from .backend import Backend
from .limits import Limits
from .metrics import Metrics
from .queue import FairQueue, Job, Solution
from .refusals import RefusedError

Outcome: TypeAlias = tuple[Any, int] | Exception
SPEEDS: Final = 32  # batches that the speed is taken from
MAX_RETRY_S: Final = 60


class Worker:
    """Runs jobs; make it, use it and close it on one loop."""

    def __init__(
        self,
        backend: Backend,
        limits: Limits,
        metrics: Metrics,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """``on_failure``: called if it ends by a fault of its own, and would run nothing more."""
        self._backend = backend
        self._limits = limits
        self._metrics = metrics
        self.queue: Final = FairQueue(limits)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prm-edge-model")
        self._speeds: deque[tuple[int, float]] = deque(maxlen=SPEEDS)
        self._running_tokens = 0
        self._on_failure = on_failure
        self._task = asyncio.get_running_loop().create_task(self._work())
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)

    async def close(self) -> None:
        """Stop; what waits is cancelled, what runs is finished first."""
        self._task.cancel()
        await asyncio.wait([self._task])
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    async def self_test(self) -> float:
        """Run the package's self-test in the model's thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._backend.self_test)

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            RefusedError: when there is no room, or the model would not get to it in time.
        """
        self.queue.put(job, retry_after_s=self.wait_s)
        self._tell()

    def wait_s(self) -> int:
        """About how long what is queued now takes, in whole seconds from 1."""
        tokens = sum(n for n, _ in self._speeds)
        seconds = sum(s for _, s in self._speeds)
        if not tokens:
            return 1
        ahead = self.queue.tokens + self._running_tokens
        return max(1, min(MAX_RETRY_S, math.ceil(ahead * seconds / tokens)))

    async def result(self, job: Job, gone: asyncio.Future[Any]) -> Any:
        """Wait for a job until its deadline, or until its client is gone.

        Raises:
            RefusedError: when its turn did not come in time; nothing was run.
            ClientGone: when nobody waits for it any more.
        """
        left_s = job.queued_s + self._limits.deadline_s - time.monotonic()
        try:
            await asyncio.wait(
                {job.done, gone}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not job.done.done() and self.queue.discard(job):
                self._end(job)
                if gone.done():
                    raise ClientGone
                raise RefusedError(
                    "busy",
                    f"its turn did not come within {self._limits.deadline_s:g} s; nothing was "
                    "run: send it again later",
                    retry_after_s=self.wait_s(),
                )
            await asyncio.wait({job.done, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done.done():
                raise ClientGone
            return job.done.result()
        except asyncio.CancelledError:
            if self.queue.discard(job):
                self._end(job)
            raise
        finally:
            self._tell()

    def _tell(self) -> None:
        self._metrics.queue_requests.set(self.queue.requests)
        self._metrics.queue_tokens.set(self.queue.tokens)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self.queue.take()
            self._tell()
            start_s = time.monotonic()
            for job in batch:
                self._metrics.queue_wait.observe(start_s - job.queued_s)
            self._running_tokens = sum(job.tokens for job in batch)
            running = loop.run_in_executor(self._thread, run_batch, self._backend, batch)
            try:
                outcomes = await asyncio.shield(running)
            except asyncio.CancelledError:
                self._settle(batch, await running)  # a stopping server still tells what it has
                raise
            finally:
                self._running_tokens = 0
            seconds = time.monotonic() - start_s
            self._speeds.append((sum(job.tokens for job in batch), seconds))
            self._metrics.batches.inc()
            self._metrics.busy_seconds.inc(seconds)
            self._settle(batch, outcomes)

    def _settle(self, batch: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
        for job, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                if not job.done.done():
                    job.done.set_exception(outcome)
                    job.done.exception()  # seen: whoever waited may be gone
            else:
                result, tokens = outcome
                self._metrics.tokens_run.inc(tokens)
                self.queue.settle(job, tokens)
                if not job.done.done():
                    job.done.set_result(result)
            self._end(job)

    def _end(self, job: Job) -> None:
        if job.finished is not None:
            job.finished()


class ClientGone(Exception):  # noqa: N818 - nothing went wrong
    """The client has disconnected; there is nobody to answer."""


def run_batch(backend: Backend, batch: Sequence[Job]) -> list[Outcome]:
    """Run jobs in the model's thread: solutions together, everything else in its turn."""
    solutions = [job.work for job in batch if isinstance(job.work, tuple)]
    scored = iter(_together(backend, solutions) if solutions else [])
    return [next(scored) if isinstance(job.work, tuple) else _alone(job.work) for job in batch]


def _together(backend: Backend, solutions: Sequence[Solution]) -> list[Outcome]:
    try:
        return backend.score_many(solutions)
    except Exception as error:  # a fault of ours must not stop the worker
        return [error] * len(solutions)


def _alone(call: Callable[[], tuple[Any, int]]) -> Outcome:
    try:
        return call()
    except Exception as error:
        return error
