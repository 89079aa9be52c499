"""Batches in a thread of their own: in order, one at a time, while the caller goes on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prm_edge_runtime import Scorer, scorer
from prm_edge_runtime.errors import InputError
from prm_edge_runtime.overlap import Overlap
from prm_edge_runtime.package import open_package

PROBLEM = "Solve for x: 2x + 4 = 10."


@pytest.mark.parametrize("beside", [False, True])
def test_found_is_in_order(beside: bool) -> None:
    threads = set()

    def run(batch: Sequence[int]) -> list[int]:
        threads.add(threading.current_thread())
        return [2 * n for n in batch]

    with Overlap(run, beside=beside) as runs:
        for batch in ([1, 2], [], [3], [4, 5]):
            runs.put(batch)
    assert runs.found == [2, 4, 6, 8, 10]
    assert len(threads) == 1
    assert (threading.current_thread() in threads) is not beside


def test_the_caller_goes_on_while_a_batch_runs() -> None:
    """The batch waits for what the caller does after it was put: alone neither would end."""
    went_on = threading.Event()

    def run(batch: Sequence[int]) -> list[int]:
        assert went_on.wait(timeout=30)
        return list(batch)

    with Overlap(run, beside=True) as runs:
        runs.put([1])
        went_on.set()
    assert runs.found == [1]


def test_one_batch_runs_at_a_time() -> None:
    running = threading.Lock()

    def run(batch: Sequence[int]) -> list[int]:
        assert running.acquire(blocking=False)
        running.release()
        return list(batch)

    with Overlap(run, beside=True) as runs:
        for n in range(50):
            runs.put([n])
    assert runs.found == list(range(50))


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_a_run_raises_is_raised(at: int, beside: bool) -> None:
    def run(batch: Sequence[int]) -> list[int]:
        if batch == [at]:
            raise InputError(f"batch {at}")
        return list(batch)

    with pytest.raises(InputError, match=f"^batch {at}$"), Overlap(run, beside=beside) as runs:  # noqa: PT012
        for n in range(3):
            runs.put([n])


def test_what_the_caller_raises_waits_for_the_batch_and_wins() -> None:
    ended: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def run(batch: Sequence[int]) -> list[int]:
        begun.set()
        assert go.wait(timeout=30)
        ended.extend(batch)
        raise InputError("of the batch")

    with pytest.raises(KeyError, match="of the caller"), Overlap(run, beside=True) as runs:  # noqa: PT012
        runs.put([7])
        assert begun.wait(timeout=30)
        go.set()
        raise KeyError("of the caller")
    assert ended == [7]


class OnDevice(Scorer):
    """A scorer of the CPU that says it is elsewhere."""

    @property
    def device(self) -> str:
        return "cuda"


@pytest.fixture
def elsewhere(tiny_package: Path) -> Scorer:
    opened = open_package(tiny_package)
    here = Scorer.load(tiny_package, device="cpu")
    return OnDevice(opened, opened.manifest.variants[0], here._open_engine(), "argument")


def test_score_many_encodes_the_next_while_a_batch_runs(
    elsewhere: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer, "AHEAD_RECORDS", 4)
    items = [(PROBLEM, [f"x = {n}", "so"]) for n in range(11)]
    expected = [elsewhere.score(*item) for item in items]
    encoded, during = [0], []
    encode, run = elsewhere._encoder.encode, elsewhere._run

    def counting(*arguments: Any) -> Any:
        encoded[0] += 1
        fifth.set() if encoded[0] == 5 else None
        return encode(*arguments)

    def waiting(batch: Any) -> Any:
        if not during:  # until the next batch is begun, which without a thread never comes
            assert fifth.wait(timeout=30)
        during.append(threading.current_thread() is threading.main_thread())
        return run(batch)

    fifth = threading.Event()
    monkeypatch.setattr(elsewhere._encoder, "encode", counting)
    monkeypatch.setattr(elsewhere, "_run", waiting)
    assert [replace(found) for found in elsewhere.score_many(items)] == expected
    assert during == [False] * 3


def test_score_many_on_the_cpu_needs_no_thread(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Scorer.load(tiny_package, device="cpu")
    run, seen = here._run, []

    def watched(batch: Any) -> Any:
        seen.append(threading.current_thread() is threading.main_thread())
        return run(batch)

    monkeypatch.setattr(here, "_run", watched)
    here.score_many([(PROBLEM, ["x = 3"])])
    assert seen == [True]
