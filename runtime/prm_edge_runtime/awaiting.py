"""Await what computes, so that an event loop goes on while the model runs. Standard library only.

Calls run in a few threads of their own: the loop's default threads are many, and each run of a
model holds memory. A call that is cancelled before it began never runs; one that is running cannot
be stopped, so it ends, and its result is dropped.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# One more than the cores: a run uses them all, and meanwhile the next one is encoded.
THREADS: Final = (os.cpu_count() or 1) + 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="prm-edge")


if hasattr(os, "register_at_fork"):
    # a forked process has the pool without its threads, and would wait for ever
    os.register_at_fork(after_in_child=_pool.cache_clear)


async def run_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in one of the threads; raise what it raises."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_pool(), partial(function, *args, **kwargs))
