"""Many clients at once: batches, bounds, deadlines, clients that go, an orderly end."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from server_scorers import HeldScorer, run, serving, until

from prm_edge.server.keys import Keys
from prm_edge.server.queue import FairQueue
from prm_edge_runtime import Scorer, Session

KEYS = Keys([("anna", "a" * 20), ("ben", "b" * 20)])


def test_server_runs_waiting_solutions_together() -> None:
    scorer = HeldScorer()

    async def test() -> None:
        async with serving(scorer) as client:
            scorer.may_run.clear()
            first = asyncio.ensure_future(client.score("first"))
            await until(scorer.began.is_set)
            others = [asyncio.ensure_future(client.score(f"p{n}")) for n in range(5)]
            await client.until_queued(5)
            scorer.may_run.set()
            assert [a.status for a in await asyncio.gather(first, *others)] == [200] * 6
            assert scorer.batches[1:] == [[f"p{n}" for n in range(5)]]

    run(test)


def test_server_takes_more_at_once_where_the_model_is_quick() -> None:
    scorer = HeldScorer()

    async def test() -> None:
        # one solution is about 10 tokens; a model that answers at once takes up to 8 times 12
        async with serving(scorer, limits={"batch_tokens": 12}) as client:
            assert (await client.score("quick")).status == 200
            scorer.may_run.clear()
            first = asyncio.ensure_future(client.score("first"))
            await until(lambda: len(scorer.batches) == 2)
            others = [asyncio.ensure_future(client.score(f"p{n}")) for n in range(12)]
            await client.until_queued(12)
            await asyncio.sleep(0.2)  # now it was slow
            scorer.may_run.set()
            await asyncio.gather(first, *others)
            assert len(scorer.batches[2]) == 1
            assert max(map(len, scorer.batches)) == 9

    run(test)


def test_server_tells_each_of_a_batch_its_own_error() -> None:
    scorer = HeldScorer()

    async def test() -> None:
        async with serving(scorer) as client:
            scorer.may_run.clear()
            first = asyncio.ensure_future(client.score("first"))
            await until(scorer.began.is_set)
            good = asyncio.ensure_future(client.score("good"))
            bad = asyncio.ensure_future(
                client.ask("/v1/score", {"problem": "bad", "steps": ["broken"]})
            )
            await client.until_queued(2)
            scorer.may_run.set()
            assert (await first).status == (await good).status == 200
            failed = await bad
            assert failed.status == 500
            assert failed.json()["error"]["message"] == (
                "the model failed on this text, so there is no score for it"
            )

    run(test)


def test_server_refuses_with_429_when_the_queue_is_full() -> None:
    scorer = HeldScorer()

    async def test() -> None:
        async with serving(scorer, limits={"queue_requests": 4}, keys=KEYS) as client:
            scorer.may_run.clear()
            anna = [asyncio.ensure_future(client.score("p", key="a" * 20))]
            await until(scorer.began.is_set)
            anna += [asyncio.ensure_future(client.score("p", key="a" * 20)) for _ in range(3)]
            await client.until_queued(3)
            greedy = await client.score("p", key="a" * 20)
            ben = asyncio.ensure_future(client.score("ben's", key="b" * 20))
            await client.until_queued(4)
            full = await client.score("p", key="b" * 20)
            scorer.may_run.set()
            assert [a.status for a in await asyncio.gather(*anna, ben)] == [200] * 5
        for refused, words in ((greedy, "your part of the queue"), (full, "the queue is full")):
            assert refused.status == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert words in refused.json()["error"]["message"]
            assert refused.json()["error"]["code"] == "busy"
        assert len(scorer.ran) == 5

    run(test)


def test_server_drops_what_waits_beyond_its_deadline() -> None:
    scorer = HeldScorer()

    async def test() -> None:
        async with serving(scorer, limits={"deadline_s": 0.05}) as client:
            scorer.may_run.clear()
            running = asyncio.ensure_future(client.score("running"))
            await until(scorer.began.is_set)
            late = await client.score("late")
            assert late.status == 429
            assert "within 0.05 s; nothing was run" in late.json()["error"]["message"]
            assert int(late.headers["retry-after"]) >= 1
            scorer.may_run.set()
            assert (await running).status == 200  # it had begun: it is answered, if late
        assert scorer.ran == ["running"]

    run(test)


def test_server_never_runs_what_nobody_waits_for() -> None:
    scorer = HeldScorer()

    async def test() -> None:
        async with serving(scorer) as client:
            scorer.may_run.clear()
            running = asyncio.ensure_future(client.score("running"))
            await until(scorer.began.is_set)
            gone = asyncio.Event()
            left = asyncio.ensure_future(client.score("left", gone=gone))
            await client.until_queued(1)
            gone.set()
            assert (await left).status == 0
            assert client.api.worker.queue.requests == 0
            scorer.may_run.set()
            assert (await running).status == 200
            assert client.api.metrics.abandoned._value.get() == 1
        assert scorer.ran == ["running"]

    run(test)


def test_server_ends_a_session_whose_id_nobody_learns(tiny_package: Path) -> None:
    async def test() -> None:
        with Scorer.load(tiny_package) as scorer:
            held = threading.Event()
            real = scorer.session

            def slowly(problem: str) -> Session:
                assert held.wait(30)
                return real(problem)

            changed: Any = scorer
            changed.session = slowly
            async with serving(scorer) as client:
                gone = asyncio.Event()
                asking = client.ask("/v1/sessions", {"problem": "1 + 1 = ?"}, gone=gone)
                left = asyncio.ensure_future(asking)
                await until(lambda: client.api.worker.queue.requests == 0)
                await until(lambda: len(client.api.sessions) == 1)
                gone.set()
                assert (await left).status == 0
                held.set()
                await until(lambda: len(client.api.sessions) == 0)
                assert client.api.sessions.n_bytes == 0

    run(test)


def test_server_goes_on_when_a_client_leaves_while_its_request_runs() -> None:
    scorer = HeldScorer()

    async def test() -> None:
        async with serving(scorer) as client:
            scorer.may_run.clear()
            gone = asyncio.Event()
            left = asyncio.ensure_future(client.score("left", gone=gone))
            await until(scorer.began.is_set)
            gone.set()
            assert (await left).status == 0
            scorer.may_run.set()
            assert (await client.score("next")).status == 200

    run(test)


def test_server_lets_one_in_before_the_many_of_another() -> None:
    scorer = HeldScorer()

    async def test() -> None:
        limits = {"batch_tokens": 1}
        async with serving(scorer, limits=limits, keys=KEYS) as client:
            scorer.may_run.clear()
            first = asyncio.ensure_future(client.score("anna", key="a" * 20))
            await until(scorer.began.is_set)
            anna = [asyncio.ensure_future(client.score("anna", key="a" * 20)) for _ in range(30)]
            await client.until_queued(30)
            ben = asyncio.ensure_future(client.score("ben", key="b" * 20))
            await client.until_queued(31)
            scorer.may_run.set()
            await asyncio.gather(first, *anna, ben)
        assert scorer.ran.index("ben") <= 2

    run(test)


def test_server_is_not_ready_before_the_self_test() -> None:
    scorer = HeldScorer()

    async def test() -> None:
        async with serving(scorer, ready=False) as client:
            client.api.state = "starting"
            assert (await client.ask("/health", method="GET")).status == 503
            early = await client.score("p")
            assert (early.status, early.json()["error"]["code"]) == (503, "not_ready")
            assert early.headers["retry-after"] == "1"
            client.api.state = "ready"
            assert (await client.ask("/health", method="GET")).json() == {"status": "ready"}
        assert client.api.state == "stopping"

    run(test)


def test_server_that_fails_its_self_test_answers_nothing() -> None:
    failures: list[BaseException] = []

    async def test() -> None:
        async with serving(HeldScorer(wrong=True), on_failure=failures.append) as client:
            assert (await client.ask("/health", method="GET")).json() == {"status": "failed"}
            assert (await client.score("p")).status == 503

    run(test)
    assert ["does not reproduce" in str(error) for error in failures] == [True]


def test_server_that_can_run_nothing_more_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[BaseException] = []

    def broken(*arguments: object) -> None:
        raise RuntimeError("a fault of the queue")

    async def test() -> None:
        async with serving(HeldScorer(), on_failure=failures.append) as client:
            monkeypatch.setattr(FairQueue, "settle", broken)
            gone = asyncio.Event()
            asyncio.get_running_loop().call_later(0.2, gone.set)
            await client.score("p", gone=gone)
            assert (await client.ask("/health", method="GET")).json() == {"status": "failed"}

    run(test)
    assert [str(error) for error in failures] == ["a fault of the queue"]


def test_server_finishes_what_runs_when_it_stops() -> None:
    scorer = HeldScorer()

    async def test() -> None:
        async with serving(scorer) as client:
            scorer.may_run.clear()
            running = asyncio.ensure_future(client.score("p"))
            await until(scorer.began.is_set)
            asyncio.get_running_loop().call_later(0.05, scorer.may_run.set)
        assert (await running).status == 200

    run(test)


def test_server_limits_how_long_a_body_may_take() -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"problem": '
        await asyncio.sleep(30)
        yield b'"p"}'

    async def test() -> None:
        async with serving(HeldScorer(), limits={"body_s": 0.05}) as client:
            slow = await client.ask("/v1/score", chunks=slowly)
            assert (slow.status, slow.json()["error"]["code"]) == (408, "slow_body")

    run(test)


def test_server_limits_all_bodies_together() -> None:
    async def test() -> None:
        waiting = asyncio.Event()

        async def part() -> AsyncIterator[bytes]:
            yield b" " * 900
            await waiting.wait()

        async with serving(HeldScorer(), limits={"bodies_bytes": 1000}) as client:
            first = asyncio.ensure_future(client.ask("/v1/score", chunks=part))
            await until(lambda: client.api.intake.n_bytes == 900)
            second = await client.ask("/v1/score", {"problem": "p" * 200, "steps": []})
            assert second.status == 429
            assert "too much is being sent at once" in second.json()["error"]["message"]
            waiting.set()
            assert (await first).status == 422
            assert client.api.intake.n_bytes == 0

    run(test)


def test_server_logs_no_text_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    from prm_edge.server import logs

    def logged(with_text: bool) -> list[dict[str, Any]]:
        async def test() -> None:
            async with serving(HeldScorer(), with_text=with_text) as client:
                await client.score("SECRET", headers=[*JSON_AND_ID])
                await client.ask("/v1/score", {"problem": "SECRET", "steps": ["broken"]})
                await client.ask("/v1/score", {"SECRET": "p"})

        logs.start_logging(with_text=with_text)
        try:
            run(test)
        finally:
            for name in (logs.LOGGER, *logs.UVICORN):
                logging.getLogger(name).handlers = []
                logging.getLogger(name).propagate = True
        return [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    quiet = logged(False)
    assert "SECRET" not in json.dumps(quiet)
    requests = [line for line in quiet if line["event"] == "request"]
    assert [line["status"] for line in requests] == [200, 500, 422]
    assert requests[0]["request_id"] == "my-id.1"
    assert requests[0]["client"] == "address:127.0.0.1"
    assert requests[0]["tokens"] > 0
    assert requests[2]["code"] == "invalid"
    [failed] = [line for line in quiet if line["event"] == "failed"]
    assert failed["error"] == "EngineError"
    assert failed["request_id"] == requests[1]["request_id"]
    assert any("worker.py" in place for place in failed["at"])
    assert "SECRET" in json.dumps(logged(True))


JSON_AND_ID = [(b"content-type", b"application/json"), (b"x-request-id", b"my-id.1")]
