"""Fairness and bounds of the queue."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_edge.server.limits import Limits
from prm_edge.server.queue import FairQueue, Job, Solution
from prm_edge.server.refusals import RefusedError
from prm_edge_runtime.errors import ConfigError


def job(client: str, tokens: int = 10) -> Job:
    done: asyncio.Future[None] = asyncio.Future(loop=asyncio.get_running_loop())
    return Job(
        client=client, tokens=tokens, done=done, queued_s=0.0, work=Solution(problem="p", steps=())
    )


async def drain(queue: FairQueue) -> list[Job]:
    taken: list[Job] = []
    while len(queue):
        taken += queue.take()
    return taken


def test_queue_gives_one_that_sends_much_no_more_than_one_that_sends_little() -> None:
    async def order() -> list[str]:
        queue = FairQueue(Limits(batch_tokens=1))
        for _ in range(100):
            queue.put(job("much"))
        for _ in range(3):
            queue.put(job("little"))
        return [one.client for one in await drain(queue)]

    taken = asyncio.run(order())
    assert taken[:6].count("little") == 3


def test_queue_shares_tokens_not_requests() -> None:
    async def tokens() -> Counter[str]:
        queue = FairQueue(Limits(batch_tokens=1))
        for _ in range(20):
            queue.put(job("long", 100))
        for _ in range(100):
            queue.put(job("short", 10))
        served: Counter[str] = Counter()
        while sum(served.values()) < 1000:
            for one in queue.take():
                served[one.client] += one.tokens
        return served

    served = asyncio.run(tokens())
    assert abs(served["long"] - served["short"]) <= 110


def test_queue_does_not_let_anybody_save_up_turns() -> None:
    async def order() -> list[str]:
        queue = FairQueue(Limits(batch_tokens=1))
        queue.put(job("late", 1))
        for _ in range(50):
            queue.put(job("busy"))
        for _ in range(40):
            queue.take()  # meanwhile "late" wants nothing
        for _ in range(20):
            queue.put(job("late"))
        return [one.client for one in await drain(queue)]

    assert asyncio.run(order())[:8].count("late") <= 5


def _order_when_settled(tokens: dict[str, int]) -> list[str]:
    async def order() -> list[str]:
        queue = FairQueue(Limits(batch_tokens=1))
        for client in tokens:
            for _ in range(20):
                queue.put(job(client, 10))
        taken: list[str] = []
        while len(queue):
            for one in queue.take():
                taken.append(one.client)
                queue.settle(one, tokens[one.client])
        return taken

    return asyncio.run(order())


def test_queue_charges_what_a_job_really_took() -> None:
    assert _order_when_settled({"cheap": 10, "dear": 40})[:20].count("dear") == 4


def test_queue_lets_others_in_before_those_that_cost_nothing() -> None:
    assert _order_when_settled({"cached": 0, "other": 8})[:20].count("other") == 10


def test_queue_takes_batches_within_the_budget_but_never_none() -> None:
    async def sizes() -> list[list[int]]:
        queue = FairQueue(Limits(batch_tokens=25))
        for tokens in (100, 10, 10, 10, 10):
            queue.put(job("a", tokens))
        batches = []
        while len(queue):
            batches.append([one.tokens for one in queue.take()])
        return batches

    assert asyncio.run(sizes()) == [[100], [10, 10], [10, 10]]


def test_queue_gives_more_at_once_to_who_asks_for_more() -> None:
    async def sizes() -> list[int]:
        queue = FairQueue(Limits(batch_tokens=25))
        for _ in range(6):
            queue.put(job("a", 10))
        return [len(queue.take(40)), len(queue.take())]

    assert asyncio.run(sizes()) == [4, 2]


def test_queue_is_bounded_in_requests_and_in_tokens() -> None:
    async def fill() -> None:
        queue = FairQueue(Limits(queue_requests=8, queue_tokens=100))
        for client in range(8):
            queue.put(job(str(client), 5))
        with pytest.raises(
            RefusedError, match=r"the queue is full \(8 requests, about 40 tokens\)"
        ):
            queue.put(job("9", 5))
        await drain(queue)
        queue.put(job("a", 60))
        with pytest.raises(RefusedError, match="the queue is full"):
            queue.put(job("b", 60))
        await drain(queue)
        queue.put(job("a", 1000))  # alone, whatever is allowed fits
        assert (queue.requests, queue.tokens) == (1, 1000)

    asyncio.run(fill())


def test_queue_leaves_room_for_others() -> None:
    async def fill() -> None:
        queue = FairQueue(Limits(queue_requests=8, queue_tokens=10_000))
        for _ in range(6):
            queue.put(job("greedy"))
        with pytest.raises(RefusedError, match="your part of the queue is full") as refused:
            queue.put(job("greedy"), retry_after_s=lambda: 7)
        assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "7"})
        queue.put(job("other"))

    asyncio.run(fill())


def test_queue_forgets_what_is_discarded_at_once() -> None:
    async def discard() -> None:
        queue = FairQueue(Limits())
        jobs = [job("a") for _ in range(5)]
        for one in jobs:
            queue.put(one)
        assert queue.discard(jobs[2])
        assert not queue.discard(jobs[2])
        assert (queue.requests, queue.tokens) == (4, 40)
        assert jobs[2] not in await drain(queue)
        assert not queue.discard(jobs[0])

    asyncio.run(discard())


def test_queue_remembers_no_crowd_of_clients() -> None:
    async def crowd() -> int:
        queue = FairQueue(Limits(queue_requests=4))
        for number in range(1000):
            queue.put(job(str(number)))
            await drain(queue)
        return queue.clients

    assert asyncio.run(crowd()) <= 5


def test_queue_waits_for_work() -> None:
    async def wait() -> None:
        queue = FairQueue(Limits())
        waiting = asyncio.ensure_future(asyncio.to_thread(queue.take))
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        one = job("a")
        queue.put(one)
        assert await waiting == [one]

    asyncio.run(wait())


def test_queue_that_is_closed_gives_back_what_waits_and_takes_nothing_more() -> None:
    async def close() -> None:
        queue = FairQueue(Limits())
        jobs = [job("a"), job("b"), job("a")]
        for one in jobs:
            queue.put(one)
        assert set(queue.close()) == set(jobs)
        assert (queue.requests, queue.tokens, queue.take()) == (0, 0, [])
        with pytest.raises(RefusedError, match="the server is stopping; nothing was run"):
            queue.put(job("c"))
        assert not queue.discard(jobs[0])

    asyncio.run(close())


def test_queue_that_is_closed_lets_go_of_whoever_waits_for_work() -> None:
    async def wait() -> list[Job]:
        queue = FairQueue(Limits())
        waiting = asyncio.ensure_future(asyncio.to_thread(queue.take))
        await asyncio.wait([waiting], timeout=0.05)
        queue.close()
        return await waiting

    assert asyncio.run(wait()) == []


actions = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abcd"), st.integers(1, 50)),
        st.tuples(st.just("take"), st.just(""), st.just(0)),
        st.tuples(st.just("discard"), st.just(""), st.integers(0, 30)),
    ),
    max_size=60,
)


@given(actions)
def test_queue_serves_each_job_once_in_its_clients_order(
    todo: list[tuple[str, str, int]],
) -> None:
    async def play() -> None:
        queue = FairQueue(Limits(queue_requests=12, queue_tokens=200, batch_tokens=40))
        accepted: list[Job] = []
        gone: list[Job] = []
        served: list[Job] = []
        for action, client, number in todo:
            if action == "put":
                one = job(client, number)
                try:
                    queue.put(one)
                    accepted.append(one)
                except RefusedError:
                    assert len(queue) > 0
            elif action == "take" and len(queue):
                served += queue.take()
            elif action == "discard" and number < len(accepted) and queue.discard(accepted[number]):
                gone.append(accepted[number])
            waiting = [one for one in accepted if one not in served and one not in gone]
            assert queue.requests == len(waiting) <= 12
            assert queue.tokens == sum(one.tokens for one in waiting)
        served += await drain(queue)
        for client in "abcd":
            mine = [one for one in accepted if one.client == client and one not in gone]
            assert [one for one in served if one.client == client] == mine

    asyncio.run(play())


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_limits_are_more_than_nothing_and_finite(value: float) -> None:
    with pytest.raises(ConfigError, match="deadline_s must be more than 0 and finite"):
        Limits(deadline_s=value)


@pytest.mark.parametrize("value", ["3", None, True])
def test_limits_are_numbers(value: object) -> None:
    with pytest.raises(ConfigError, match="sessions must be a number"):
        Limits(sessions=value)  # type: ignore[arg-type]
