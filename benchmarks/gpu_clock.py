"""Measurements within a fixed time: what will not fit any more is left out, and said."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Clock:
    """The time there is, and how long each kind of work took so far, by the size of the model."""

    end_s: float
    taken: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def run(self, what: str, kind: str, size: float, work: Callable[[], T]) -> T | None:
        """Do it unless it will probably not fit; None where it was left out or failed."""
        left = self.end_s - time.monotonic()
        needs = self.estimate(kind, size)
        if left <= 0 or needs > left:
            self._skip(f"{what}: it would take about {needs:.0f} s, and {left:.0f} s are left")
            return None
        start = time.monotonic()
        try:
            found = work()
        except Exception as error:  # a compiler is not everywhere, nor the memory
            self._skip(f"{what}: {type(error).__name__}: {str(error)[:200]}")
            return None
        seconds = time.monotonic() - start
        self.taken.setdefault(kind, []).append((size, seconds))
        print(f"{what}: {seconds:.1f} s", flush=True)
        return found

    def estimate(self, kind: str, size: float) -> float:
        """Seconds and a third: on a line through the last two sizes; 0 where there is none."""
        known = self.taken.get(kind, [])
        if not known:
            return 0.0
        last_size, last = known[-1]
        per_size = last / last_size
        for other_size, other in reversed(known[:-1]):
            if other_size != last_size:
                per_size = max((last - other) / (last_size - other_size), 0.0)
                break
        return 1.3 * max(last + per_size * (size - last_size), 0.0)

    def _skip(self, line: str) -> None:
        self.skipped.append(line)
        print(f"left out: {line}", flush=True)
