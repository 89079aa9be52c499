"""Reading ahead keeps the order, stays within its bounds, and passes on what went wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from prm_edge.ahead import Ahead


def test_ahead_keeps_the_order() -> None:
    with closing(Ahead(range(5000), lambda item: 1)) as ahead:
        assert list(ahead) == list(range(5000))


@pytest.mark.parametrize(("weight", "most"), [(1, 4), (10, 3), (1000, 1)])
def test_ahead_reads_no_more_than_its_bounds(weight: int, most: int) -> None:
    taken: list[int] = []
    full = threading.Event()

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            # one is in hand, waiting for room
            if len(taken) == most + 1:
                full.set()
            yield number

    with closing(Ahead(items(), lambda item: weight, max_items=4, max_weight=30)) as ahead:
        assert full.wait(10)
        assert len(taken) == most + 1
        assert list(ahead) == list(range(20))


def test_ahead_raises_at_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("damaged")

    with closing(Ahead(items(), lambda item: 1)) as ahead:
        found = iter(ahead)
        assert next(found) == 1
        with pytest.raises(ValueError, match="damaged"):
            next(found)


def test_ahead_ends_its_thread_when_closed_early() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 1

    before = threading.active_count()
    with closing(Ahead(endless(), lambda item: 1)) as ahead:
        assert next(iter(ahead)) == 1
    assert threading.active_count() == before
