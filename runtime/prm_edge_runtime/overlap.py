"""Run batches while the next one is prepared: on a device of its own, that is, not on the CPU.

A thread runs the batches, one at a time; the caller goes on encoding, which is nine parts in ten
Rust that holds no lock of Python's. On the CPU both would share the cores, and nothing is gained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

Given = TypeVar("Given")
Found = TypeVar("Found")


class Overlap(Generic[Given, Found]):
    """Use as a context manager; ``found`` is complete after it, in the order of the batches.

    ``beside``: whether in a thread. What ``run`` raises is raised by the next :meth:`put` or at
    the end; when the caller raises, the batch that is running ends first.
    """

    def __init__(self, run: Callable[[Sequence[Given]], list[Found]], *, beside: bool) -> None:
        self.found: list[Found] = []
        self._run = run
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prm-edge-run") if beside else None
        self._running: Future[list[Found]] | None = None

    def put(self, batch: Sequence[Given]) -> None:
        """Run a batch, after the one before it; it belongs to the run from here on."""
        if self._pool is None:
            self.found += self._run(batch)
            return
        self._take()
        self._running = self._pool.submit(self._run, batch)

    def _take(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            self.found += running.result()

    def __enter__(self) -> Overlap[Given, Found]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._take()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
