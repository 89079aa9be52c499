"""The application: routes, and what each one does.

In: a backend and what it may take on. Out: an ASGI application, which starts its worker and checks
the model when its lifespan begins.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import bodies
from .backend import Backend, estimated_tokens
from .guard import GONE, SEEN, Answering, Endpoint, JsonResponse, Seen, guarded
from .intake import Intake
from .keys import Keys
from .limits import Limits
from .logs import log, logger
from .metrics import CONTENT_TYPE, Metrics
from .openapi import document
from .page import page, policy
from .queue import Job
from .refusals import RefusedError
from .sessions import Live, Sessions
from .worker import ClientGone, Worker

T = TypeVar("T")
SWEEP_S: Final = 5.0


class Api:
    """One server's state, and its endpoints."""

    def __init__(
        self,
        backend: Backend,
        limits: Limits,
        *,
        with_text: bool,
        on_failure: Callable[[BaseException], None] | None,
    ) -> None:
        self.backend: Final = backend
        self.limits: Final = limits
        about = backend.info()
        self.metrics: Final = Metrics(
            {key: str(about[key]) for key in ("name", "package", "variant", "device", "version")},
            backend.prefix_counters,
        )
        self.sessions: Final = Sessions(limits, self.metrics)
        self.state = "starting"
        self.intake = Intake(limits)
        self._with_text = with_text
        self._on_failure = on_failure
        self._worker: Worker | None = None
        self._document = document(limits, about["aggregates"])
        self._page = page(self._document)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Start the worker, check the model, and keep sessions from staying for ever."""
        self._worker = Worker(self.backend, self.limits, self.metrics, self._fail)
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._check()), loop.create_task(self._sweep())]
        try:
            yield
        finally:
            self.state = "stopping"
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await self._worker.close()
            self.sessions.close()

    async def _check(self) -> None:
        try:
            worst = await self.worker.self_test()
        except Exception as error:
            self._fail(error)
            return
        self.state = "ready"
        log(logging.INFO, "ready", largest_difference=worst)

    def _fail(self, error: BaseException) -> None:
        """Answer nothing more: a wrong score is worse than none."""
        self.state = "failed"
        logger.error("this server cannot go on", exc_info=error)
        if self._on_failure is not None:
            self._on_failure(error)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_S, self.limits.session_idle_s / 2))
            self.sessions.expire()

    @property
    def worker(self) -> Worker:
        """What runs the model, while the lifespan lasts."""
        if self._worker is None:
            raise RefusedError("not_ready", "the server has not started yet; try again")
        return self._worker

    # --- what is asked about the server

    async def health(self, request: Request) -> Response:
        ready = self.state == "ready"
        return JsonResponse({"status": self.state}, status_code=200 if ready else 503)

    async def info(self, request: Request) -> Response:
        names = Limits.__dataclass_fields__
        limits = {name: getattr(self.limits, name) for name in names}
        return JsonResponse({**self.backend.info(), "limits": limits})

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def show_document(self, request: Request) -> Response:
        return JsonResponse(self._document)

    async def show_page(self, request: Request) -> Response:
        headers = {"Content-Security-Policy": policy(self._page)}
        return Response(self._page, media_type="text/html", headers=headers)

    # --- solutions

    async def score(self, request: Request) -> Response:
        asked = bodies.read_score(await self._data(request), self.limits)
        if isinstance(asked, bodies.Candidates):
            return await self._rank(request, asked)
        if asked.response is None:
            return await self._score(request, asked.problem, asked.steps, {})
        steps = self.backend.split(asked.response)
        bodies.check_split(asked.problem, steps, self.limits)
        return await self._score(request, asked.problem, steps, {"steps": list(steps)})

    async def _score(
        self, request: Request, problem: str, steps: tuple[str, ...], more: dict[str, Any]
    ) -> Response:
        solution = self.backend.solution(problem, steps)
        result = await self._run(request, solution, estimated_tokens((problem, *steps)))
        self._count(request, result.n_tokens)
        return JsonResponse({**more, **self.backend.told(result)})

    async def rank(self, request: Request) -> Response:
        return await self._rank(request, bodies.read_rank(await self._data(request), self.limits))

    async def _rank(self, request: Request, asked: bodies.Candidates) -> Response:
        self.backend.check_aggregate(asked.by)
        texts = [t for steps in asked.candidates for t in (asked.problem, *steps)]
        result = await self._run(
            request,
            lambda: self.backend.rank(asked.problem, asked.candidates, asked.by),
            estimated_tokens(texts),
        )
        self._count(request, sum(one["n_tokens"] for one in result["candidates"]))
        return JsonResponse(result)

    # --- sessions

    async def open_session(self, request: Request) -> Response:
        asked = bodies.read_new_session(await self._data(request), self.limits)
        texts = (asked.problem, *asked.steps)
        n_bytes = self.backend.session_bytes_after(None, texts)
        live = self.sessions.reserve(_seen(request).owner, n_bytes)

        def start() -> tuple[None, int]:
            live.session, n_run = self.backend.open_session(asked.problem, asked.steps)
            return None, n_run

        try:
            await self._run_session(request, live, start, estimated_tokens(texts))
        except ClientGone:
            live.unwanted = True
            raise
        return JsonResponse(self._told(live), status_code=201)

    async def session(self, request: Request) -> Response:
        live = self._take(request)
        if request.method == "DELETE":
            self.sessions.end(live)
            return Response(status_code=204)
        told = self._told(live)
        self._give_back(live)
        return JsonResponse(told)

    async def add(self, request: Request) -> Response:
        asked = bodies.read_steps(await self._data(request), self.limits)
        live = self._take(request, after=asked.after)
        session = _session(live)
        try:
            self.sessions.grow(live, self.backend.session_bytes_after(session, asked.steps))
        except RefusedError:
            self._give_back(live)
            raise
        added = await self._run_session(
            request,
            live,
            lambda: self.backend.add(session, asked.steps),
            estimated_tokens(asked.steps),
        )
        return JsonResponse({**self._told(live), "added": added})

    async def peek(self, request: Request) -> Response:
        asked = bodies.read_steps(await self._data(request), self.limits)
        live = self._take(request, after=asked.after)
        session = _session(live)
        peeked = await self._run_session(
            request,
            live,
            lambda: self.backend.peek(session, asked.steps),
            estimated_tokens(asked.steps),
        )
        return JsonResponse(peeked)

    async def undo(self, request: Request) -> Response:
        asked = bodies.read_undo(await self._data(request))
        live = self._take(request, after=asked.after)
        try:
            _session(live).undo(asked.n)
            return JsonResponse(self._told(live))
        finally:
            self._give_back(live)

    async def fork(self, request: Request) -> Response:
        bodies.read_nothing(await self._data(request))
        live = self._take(request)
        try:
            forked = self.sessions.reserve(live.owner, live.reserved)
            forked.session = _session(live).fork()
            self._give_back(forked)
            return JsonResponse(self._told(forked), status_code=201)
        finally:
            self._give_back(live)

    def _take(self, request: Request, *, after: int | None = None) -> Live:
        live = self.sessions.take(request.path_params["id"], _seen(request).owner)
        n_steps = len(_session(live).scores)
        if after is not None and after != n_steps:
            self._give_back(live)
            raise RefusedError(
                "conflict",
                f"the session has {n_steps} steps, not {after}; it is as it was: look at it with "
                "GET, and go on from there",
            )
        return live

    def _give_back(self, live: Live) -> None:
        self.sessions.give_back(live, self.backend.session_bytes(_session(live)))

    def _told(self, live: Live) -> dict[str, Any]:
        expires_in_s = round(self.sessions.expires_in_s(live), 1)
        state = self.backend.session_state(_session(live))
        return {"id": live.id, **state, "expires_in_s": expires_in_s}

    # --- what they share

    async def _data(self, request: Request) -> dict[str, Any]:
        if self.state != "ready":
            raise RefusedError(
                "not_ready", f"the server is {self.state}; /health says when it is ready"
            )
        data = bodies.decode(await self.intake.read(request))
        if self._with_text:
            _seen(request).text = data
        return data

    def _count(self, request: Request, n_tokens: int) -> None:
        self.metrics.tokens.inc(n_tokens)
        _seen(request).tokens = n_tokens

    async def _run_session(
        self, request: Request, live: Live, call: Callable[[], tuple[T, int]], tokens: int
    ) -> T:
        """Run something of a session; whoever asked may go, the session is given back all the same.

        One that never came to be, because its problem is refused or its client left first, ends.
        """

        def finished() -> None:
            if live.session is None or live.unwanted:
                self.sessions.end(live)
            else:
                self._give_back(live)

        result: T = await self._run(request, call, tokens, finished=finished)
        return result

    async def _run(
        self,
        request: Request,
        work: Any,
        tokens: int,
        *,
        finished: Callable[[], None] | None = None,
    ) -> Any:
        worker, loop = self.worker, asyncio.get_running_loop()
        job = Job(
            client=_seen(request).client,
            tokens=tokens,
            done=loop.create_future(),
            queued_s=time.monotonic(),
            work=work,
            finished=finished,
        )
        try:
            worker.submit(job)
        except RefusedError:
            if finished is not None:
                finished()
            raise
        told = request.scope.get(GONE)
        gone = told or loop.create_task(_wait_until_gone(request))
        try:
            return await worker.result(job, gone)
        finally:
            if gone is not told:
                gone.cancel()


def create_app(
    backend: Backend,
    *,
    limits: Limits | None = None,
    keys: Keys | None = None,
    hosts: Sequence[str] = ("localhost", "127.0.0.1", "[::1]"),
    pages: Sequence[Route] = (),
    with_text: bool = False,
    on_failure: Callable[[BaseException], None] | None = None,
) -> Starlette:
    """Make the application.

    Args:
        hosts: the values of the Host header that are answered, without a port.
        pages: routes of your own, behind the same guard; they come before ours.
        with_text: log what pupils wrote.
        on_failure: called when the model does not pass its self-test, or cannot be run any more.
    """
    api = Api(backend, limits or Limits(), with_text=with_text, on_failure=on_failure)
    routes = [
        *pages,
        _route("/v1/score", api.score, ["POST"]),
        _route("/v1/rank", api.rank, ["POST"]),
        _route("/v1/sessions", api.open_session, ["POST"]),
        _route("/v1/sessions/{id}", api.session, ["GET", "DELETE"]),
        _route("/v1/sessions/{id}/steps", api.add, ["POST"]),
        _route("/v1/sessions/{id}/peek", api.peek, ["POST"]),
        _route("/v1/sessions/{id}/undo", api.undo, ["POST"]),
        _route("/v1/sessions/{id}/fork", api.fork, ["POST"]),
        _route("/", api.show_page, ["GET"]),
        _route("/openapi.json", api.show_document, ["GET"]),
        _route("/health", api.health, ["GET"]),
        _route("/info", api.info, ["GET"]),
        _route("/metrics", api.show_metrics, ["GET"]),
    ]
    app = guarded(routes, hosts=hosts, keys=keys, metrics=api.metrics, lifespan=api.lifespan)
    app.state.api = api
    return app


def _route(path: str, answer: Answering, methods: list[str]) -> Route:
    return Route(path, Endpoint(answer), methods=methods)


def _seen(request: Request) -> Seen:
    seen: Seen = request.scope[SEEN]
    return seen


def _session(live: Live) -> Any:
    # a session that was taken is there
    return live.session


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
