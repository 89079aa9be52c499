"""Read ahead: a thread prepares the next items while the caller works on this one.

Bounded by a number of items and by their weight, so memory does not grow with the input. Imports
nothing but the standard library.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, TypeVar

T = TypeVar("T")

MAX_ITEMS: Final = 256
MAX_WEIGHT: Final = 8 * 1024 * 1024  # one item may exceed it alone


class Ahead(Generic[T]):
    """Iterate over ``items``, read by a thread of its own. Close it when you stop early.

    ``weigh``: the size of one item in bytes, roughly. What ``items`` raises is raised at its place.
    """

    def __init__(
        self,
        items: Iterable[T],
        weigh: Callable[[T], int],
        *,
        max_items: int = MAX_ITEMS,
        max_weight: int = MAX_WEIGHT,
    ) -> None:
        self._items = items
        self._weigh = weigh
        self._max_items = max_items
        self._max_weight = max_weight
        self._ready: deque[T] = deque()
        self._weight = 0
        self._error: BaseException | None = None
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="prm-edge reader", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                if not self._put(item):
                    return
        except BaseException as caught:  # raised again where the items are taken
            error = caught
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()

    def _put(self, item: T) -> bool:
        weight = self._weigh(item)
        with self._changed:
            while not self._ended and self._is_full(weight):
                self._changed.wait()
            if self._ended:
                return False
            self._ready.append(item)
            self._weight += weight
            self._changed.notify_all()
        return True

    def _is_full(self, weight: int) -> bool:
        if not self._ready:
            return False
        return len(self._ready) >= self._max_items or self._weight + weight > self._max_weight

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                while not self._ready and not self._ended:
                    self._changed.wait()
                if not self._ready:
                    break
                item = self._ready.popleft()
                self._weight -= self._weigh(item)
                # woken seldom: each change of threads costs more than reading a record
                if len(self._ready) <= self._max_items // 2:
                    self._changed.notify_all()
            yield item
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop reading."""
        with self._changed:
            self._ended = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()
