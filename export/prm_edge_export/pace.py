"""How far a long stage is, in words, and from its pace so far when it will be done."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

SAID_SECONDS: Final = 5.0  # less is not worth saying


def paced(what: str, say: Callable[[str], None]) -> Callable[[int, int], None]:
    """A listener that says how many layers are done and how long the rest will take."""
    start_s = time.monotonic()

    def progress(done: int, total: int) -> None:
        left_s = (time.monotonic() - start_s) / done * (total - done)
        left = f", about {_clock(left_s)} left" if left_s >= SAID_SECONDS else ""
        say(f"{what}: layer {done} of {total}{left}")

    return progress


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes}:{second:02}"
