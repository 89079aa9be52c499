"""One thread that has the model: takes batches out of the queue and runs them.

The loop never waits for the model, nor the model for the loop: the thread takes its next batch by
itself, and wakes the loop once for each. A job that has begun is finished and answered; one that
has not is dropped when its deadline passes or its client goes, and is never run.
"""

from __future__ import annotations

import asyncio
import atexit
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from .backend import Backend
from .limits import Limits
from .metrics import Metrics
from .queue import FairQueue, Job, Solution
from .refusals import RefusedError

Outcome: TypeAlias = tuple[Any, int] | Exception
SPEEDS: Final = 32  # batches that the speed is taken from
MAX_RETRY_S: Final = 60
# Others wait for a batch: a model that is quick may run more than batch_tokens in this time, where
# more runs cheaper, as what solutions have in common is run once.
BATCH_S: Final = 0.04
MOST_BATCHES: Final = 8  # as many times batch_tokens


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
        metrics.watch(self.queue)
        self._speeds: deque[tuple[int, float]] = deque(maxlen=SPEEDS)
        self._running: list[Job] = []
        self._batch_tokens = limits.batch_tokens
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._tested: asyncio.Future[float] = self._loop.create_future()
        # A daemon, as it would keep alive a process whose loop ended without closing it; but never
        # cut off in the middle of a run, which onnxruntime does not survive quietly.
        self._thread = threading.Thread(target=self._work, name="prm-edge-model", daemon=True)
        atexit.register(self._stop)
        self._thread.start()

    async def close(self) -> None:
        """Stop; what waits is cancelled, what runs is finished first."""
        for job in self.queue.close():
            job.done.cancel()
            self._end(job)
        await self._loop.run_in_executor(None, self._thread.join)
        atexit.unregister(self._stop)

    def _stop(self) -> None:
        self.queue.close()
        self._thread.join()

    async def self_test(self) -> float:
        """Wait for the package's self-test, which the model's thread begins with.

        Raises:
            SelfTestError: when this machine does not reproduce the stored scores.
        """
        return await asyncio.shield(self._tested)

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            RefusedError: when there is no room, or the model would not get to it in time.
        """
        self.queue.put(job, retry_after_s=self.wait_s)

    def wait_s(self) -> int:
        """About how long what is queued now takes, in whole seconds from 1."""
        tokens = sum(n for n, _ in self._speeds)
        seconds = sum(s for _, s in self._speeds)
        if not tokens:
            return 1
        ahead = self.queue.tokens + sum(job.tokens for job in self._running)
        return max(1, min(MAX_RETRY_S, math.ceil(ahead * seconds / tokens)))

    async def result(self, job: Job, gone: asyncio.Future[Any]) -> Any:
        """Wait for a job until its deadline, or until its client is gone.

        Raises:
            RefusedError: when its turn did not come in time; nothing was run.
            ClientGone: when nobody waits for it any more.
        """

        def left(_: asyncio.Future[Any]) -> None:
            self._drop(job)
            _resolve(job.done, ClientGone())

        # the loop's clock is time.monotonic
        timer = self._loop.call_at(job.queued_s + self._limits.deadline_s, self._late, job)
        gone.add_done_callback(left)
        try:
            return await job.done
        except asyncio.CancelledError:
            self._drop(job)
            raise
        finally:
            timer.cancel()
            gone.remove_done_callback(left)

    def _late(self, job: Job) -> None:
        if self._drop(job):
            _resolve(
                job.done,
                RefusedError(
                    "busy",
                    f"its turn did not come within {self._limits.deadline_s:g} s; nothing was "
                    "run: send it again later",
                    retry_after_s=self.wait_s(),
                ),
            )

    def _drop(self, job: Job) -> bool:
        """Take a job that has not begun out of the queue; whether it was there."""
        found = self.queue.discard(job)
        if found:
            self._end(job)
        return found

    # --- in the model's thread

    def _work(self) -> None:
        try:
            self._tell(_resolve, self._tested, _alone(lambda: (self._backend.self_test(), 0)))
            while batch := self.queue.take(self._batch_tokens):
                self._running = batch
                start_s = time.monotonic()
                outcomes = run_batch(self._backend, batch)
                seconds = time.monotonic() - start_s
                for job, outcome in zip(batch, outcomes, strict=True):
                    if not isinstance(outcome, Exception):
                        self.queue.settle(job, outcome[1])
                self._running = []
                self._budget(sum(job.tokens for job in batch), seconds)
                self._tell(self._settle, batch, outcomes, start_s, seconds)
        except BaseException as error:
            self._tell(self._fail, error)

    def _budget(self, tokens: int, seconds: float) -> None:
        """Let the next batch be what the model does in BATCH_S, but no less than batch_tokens."""
        least = self._limits.batch_tokens
        quick = int(tokens / max(seconds, 1e-6) * BATCH_S)
        self._batch_tokens = max(least, min(quick, MOST_BATCHES * least))

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # a loop that ended without closing this: nobody listens any more
            self.queue.close()

    # --- on the loop again

    def _settle(
        self, batch: Sequence[Job], outcomes: Sequence[Outcome], start_s: float, seconds: float
    ) -> None:
        metrics = self._metrics
        self._speeds.append((sum(job.tokens for job in batch), seconds))
        metrics.batches.inc()
        metrics.busy_seconds.inc(seconds)
        n_tokens = 0
        for job, outcome in zip(batch, outcomes, strict=True):
            metrics.queue_wait.observe(start_s - job.queued_s)
            if not isinstance(outcome, Exception):
                n_tokens += outcome[1]
            _resolve(job.done, outcome)
            self._end(job)
        metrics.tokens_run.inc(n_tokens)

    def _fail(self, error: BaseException) -> None:
        # an Exception: others would end whoever waits, and with it the loop
        told = error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
        for job in [*self._running, *self.queue.close()]:
            _resolve(job.done, told)
            self._end(job)
        self._running = []
        self._on_failure(error)

    def _end(self, job: Job) -> None:
        if job.finished is not None:
            job.finished()


class ClientGone(Exception):  # noqa: N818 - nothing went wrong
    """The client has disconnected; there is nobody to answer."""


def _resolve(future: asyncio.Future[Any], outcome: Outcome) -> None:
    """Tell whoever still waits."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
        future.exception()  # seen: whoever waited may be gone
    else:
        future.set_result(outcome[0])


def run_batch(backend: Backend, batch: Sequence[Job]) -> list[Outcome]:
    """Run jobs in the model's thread: solutions together, everything else in its turn."""
    solutions = [job.work for job in batch if isinstance(job.work, Solution)]
    scored = iter(_together(backend, solutions) if solutions else [])
    return [next(scored) if isinstance(job.work, Solution) else _alone(job.work) for job in batch]


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
