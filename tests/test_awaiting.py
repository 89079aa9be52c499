"""Awaited calls: the same numbers, and a loop that goes on meanwhile."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prm_edge_runtime import Scorer, awaiting
from prm_edge_runtime.errors import InputTypeError, SessionError

PROBLEM = "Solve for x: 2x + 4 = 10."
STEPS = ["2x = 6", "x = 3"]


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer.load(Path(__file__).parent / "packages" / "v1", device="cpu") as loaded:
        yield loaded


def test_ascore_and_the_like_give_the_same_numbers(scorer: Scorer) -> None:
    async def all_of_them() -> list[Any]:
        session = await scorer.asession(PROBLEM)
        return [
            await scorer.ascore(PROBLEM, STEPS),
            await scorer.ascore_many([(PROBLEM, STEPS), (PROBLEM, STEPS[:1])]),
            await scorer.arank(PROBLEM, [STEPS, STEPS[:1]], "mean"),
            await session.apeek(STEPS),
            [await session.aadd(step) for step in STEPS],
        ]

    score, many, ranking, peeked, added = asyncio.run(all_of_them())
    assert score == scorer.score(PROBLEM, STEPS)
    assert many == scorer.score_many([(PROBLEM, STEPS), (PROBLEM, STEPS[:1])])
    assert ranking == scorer.rank(PROBLEM, [STEPS, STEPS[:1]], "mean")
    assert peeked == scorer.session(PROBLEM).peek(STEPS)
    assert tuple(added) == score.scores


def test_ascore_raises_what_score_raises(scorer: Scorer) -> None:
    with pytest.raises(InputTypeError, match="split"):
        asyncio.run(scorer.ascore(PROBLEM, "one string"))


def test_ascore_leaves_the_loop_free() -> None:
    # the real method around a score that holds its thread until the loop has gone on
    reached = threading.Event()

    class Held:
        def score(self, problem: str, steps: list[str], *, on_too_long: str) -> bool:
            return reached.wait(30)

    async def both() -> bool:
        held: Any = Held()
        call = asyncio.ensure_future(Scorer.ascore(held, PROBLEM, STEPS))
        await asyncio.sleep(0)
        reached.set()  # a blocked loop would never come here
        return bool(await call)

    assert asyncio.run(both()) is True


def test_ascore_many_at_once_from_several_tasks(scorer: Scorer) -> None:
    async def gather() -> list[Any]:
        return await asyncio.gather(*(scorer.ascore(PROBLEM, STEPS[: n % 3]) for n in range(30)))

    expected = [scorer.score(PROBLEM, STEPS[:n]) for n in range(3)]
    assert asyncio.run(gather()) == [expected[n % 3] for n in range(30)]


def test_aadd_refuses_a_second_one_at_the_same_time(scorer: Scorer) -> None:
    session = scorer.session(PROBLEM)
    with session._using(), pytest.raises(SessionError, match="in use in another thread"):
        asyncio.run(session.aadd("2x = 6"))
    assert session.scores == ()


def test_cancelled_before_it_began_never_runs() -> None:
    release, ran = threading.Event(), []

    async def flood() -> None:
        holding = [
            asyncio.ensure_future(awaiting.run_in_thread(release.wait, 30))
            for _ in range(awaiting.THREADS)
        ]
        late = asyncio.ensure_future(awaiting.run_in_thread(ran.append, 1))
        await asyncio.sleep(0)
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        release.set()
        await asyncio.gather(*holding)
        await awaiting.run_in_thread(ran.append, 2)

    asyncio.run(flood())
    assert ran == [2]


def test_awaiting_uses_few_threads() -> None:
    async def many(call: Callable[[], None]) -> None:
        await asyncio.gather(*(awaiting.run_in_thread(call) for _ in range(200)))

    names = set()
    asyncio.run(many(lambda: names.add(threading.current_thread().name)))
    assert len(names) <= awaiting.THREADS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")  # this is the test of it
def test_awaiting_works_in_a_forked_process() -> None:
    asyncio.run(awaiting.run_in_thread(int))
    child = os.fork()
    if not child:
        os._exit(0 if asyncio.run(awaiting.run_in_thread(lambda: 7)) == 7 else 1)
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        time.sleep(0.01)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the forked process hung")
    assert os.waitstatus_to_exitcode(status) == 0
