"""What the server's tests share: a model that can be held, and a client that can walk away."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from fake_scorer import FakeScorer
from starlette.applications import Starlette
from starlette.testclient import TestClient

from prm_edge.server.app import Api, create_app
from prm_edge.server.backend import Backend
from prm_edge.server.limits import Limits
from prm_edge_runtime.errors import SelfTestError
from prm_edge_runtime.results import StepScores
from prm_edge_runtime.scorer import Scorer

PROBLEM = "Solve for x: 2x + 4 = 10."
STEPS = ["2x = 6", "x = 3"]
HOST = "http://localhost"
JSON = [(b"content-type", b"application/json")]


class HeldScorer(FakeScorer):
    """A fake that runs when it may, and remembers what it ran, batch by batch."""

    max_tokens = 1024

    def __init__(self, *, wrong: bool = False) -> None:
        super().__init__()
        self.may_run = threading.Event()
        self.may_run.set()
        self.began = threading.Event()
        self.batches: list[list[str]] = []
        self._wrong = wrong

    def score(self, problem: str, steps: Sequence[str]) -> StepScores:
        self._hold([problem])
        return super().score(problem, steps)

    def score_many(self, items: Sequence[tuple[str, Sequence[str]]]) -> list[StepScores]:
        self._hold([problem for problem, _ in items])
        return [FakeScorer.score(self, problem, steps) for problem, steps in items]

    def score_prepared(self, prepared: Sequence[Any]) -> list[StepScores]:
        return self.score_many(prepared) if len(prepared) > 1 else [self.score(*prepared[0])]

    def _hold(self, problems: list[str]) -> None:
        self.batches.append(problems)
        self.began.set()
        assert self.may_run.wait(60)

    def self_test(self) -> float:
        if self._wrong:
            raise SelfTestError("this machine does not reproduce the model")
        return 0.0

    @property
    def ran(self) -> list[str]:
        return [problem for batch in self.batches for problem in batch]


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Calls an application without a network, and may go before it is answered."""

    def __init__(self, app: Starlette) -> None:
        self.app = app
        self.api: Api = app.state.api

    async def ask(
        self,
        path: str,
        data: Any = None,
        *,
        method: str = "POST",
        key: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = JSON,
        chunks: Callable[[], AsyncIterator[bytes]] | None = None,
        gone: asyncio.Event | None = None,
    ) -> Answer:
        gone = gone or asyncio.Event()
        body = b"" if data is None else json.dumps(data).encode()
        sent: list[dict[str, Any]] = []
        pieces = chunks() if chunks else _once(body)

        async def receive() -> dict[str, Any]:
            async for chunk in pieces:
                return {"type": "http.request", "body": chunk, "more_body": True}
            if not ended:
                ended.append(True)
                return {"type": "http.request", "body": b"", "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        ended: list[bool] = []
        named = [(b"authorization", b"Bearer " + key.encode())] if key else []
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost"), *headers, *named],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "scheme": "http",
        }
        await self.app(scope, receive, send)
        if not sent:
            return Answer(status=0, headers={}, body=b"")
        return Answer(
            status=sent[0]["status"],
            headers={k.decode().lower(): v.decode() for k, v in sent[0]["headers"]},
            body=b"".join(message.get("body", b"") for message in sent[1:]),
        )

    async def score(self, problem: str, **options: Any) -> Answer:
        return await self.ask("/v1/score", {"problem": problem, "steps": ["0.5"]}, **options)

    async def until_queued(self, count: int) -> None:
        await until(lambda: self.api.worker.queue.requests == count)


async def _once(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body


async def until(true: Callable[[], bool], seconds: float = 30) -> None:
    async def wait() -> None:
        while not true():
            await asyncio.sleep(0.002)

    await asyncio.wait_for(wait(), seconds)


@asynccontextmanager
async def serving(scorer: Any, *, ready: bool = True, **options: Any) -> AsyncIterator[Client]:
    """The application with its lifespan, as a server runs it."""
    limits = Limits(**options.pop("limits", {}))
    app = create_app(Backend(cast(Scorer, scorer)), limits=limits, **options)
    async with app.router.lifespan_context(app):
        client = Client(app)
        if ready:
            await until(lambda: client.api.state != "starting")
        yield client


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test on a loop of its own, within a minute."""

    async def within_a_minute() -> None:
        await asyncio.wait_for(test(), 60)

    asyncio.run(within_a_minute())


def started(scorer: Any, **options: Any) -> TestClient:
    limits = Limits(**options.pop("limits", {}))
    return TestClient(create_app(Backend(scorer), limits=limits, **options), base_url=HOST)


def wait_until_ready(client: TestClient) -> None:
    while client.get("/health").status_code != 200:
        pass


def post(client: TestClient, path: str, data: Any, status: int = 200, **options: Any) -> Any:
    answer = client.post(path, json=data, **options)
    assert answer.status_code == status, answer.text
    return answer.json()
