"""Real sockets in front of the application: how many, how long mute, and clients that go."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import uvicorn
from server_scorers import HeldScorer, run, until

from prm_edge.server.app import Api, create_app
from prm_edge.server.backend import Backend
from prm_edge.server.connections import connection_class
from prm_edge.server.limits import Limits
from prm_edge.server.run import open_socket
from prm_edge_runtime import Scorer

GOOD = b"GET /info HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def listening(scorer: Any, limits: Limits) -> AsyncIterator[tuple[int, Api, uvicorn.Server]]:
    """A server on a port, in this process; its end."""
    app = create_app(Backend(cast(Scorer, scorer)), limits=limits)
    config = uvicorn.Config(app, http=connection_class(limits), log_config=None, ws="none")
    server = uvicorn.Server(config)
    with open_socket("127.0.0.1", 0) as opened:
        task = asyncio.ensure_future(server.serve(sockets=[opened]))
        api: Api = app.state.api
        await until(lambda: api.state == "ready")
        yield opened.getsockname()[1], api, server
        server.should_exit = True
        await task


def score(problem: str) -> bytes:
    body = json.dumps({"problem": problem, "steps": ["0.5"]}).encode()
    head = (
        "POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def talk(port: int, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    got = await asyncio.wait_for(reader.read(), 30)  # until it is closed
    writer.close()
    return got


def test_connections_are_only_so_many_and_none_is_mute_for_long(tiny_package: Path) -> None:
    async def test() -> None:
        limits = Limits(connections=2, header_s=0.2)
        with Scorer.load(tiny_package) as scorer:
            async with listening(scorer, limits) as (port, _, server):
                await check(port, server)

    async def check(port: int, server: uvicorn.Server) -> None:
        assert b"200 OK" in await talk(port, GOOD)
        mute, half = (asyncio.ensure_future(talk(port, s)) for s in (b"", b"GET / HTTP/1.1\r\nHo"))
        await until(lambda: len(server.server_state.connections) == 2)
        for connection in server.server_state.connections:
            one = connection.transport.get_extra_info("socket")
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # else 40 ms an answer
        full = await talk(port, GOOD)
        assert full.startswith(b"HTTP/1.1 429 ")
        assert b"Retry-After: 1\r\n" in full
        assert json.loads(full.partition(b"\r\n\r\n")[2])["error"]["code"] == "busy"
        assert await mute == await half == b""
        # a head without end is refused, a body of that size is not
        endless = b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: b\r\n" * 10_000
        assert (await talk(port, endless)).startswith(b"HTTP/1.1 431 ")
        large = b'{"problem": "p", "steps": ["' + b"1" * 100_000
        head = (
            b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100028\r\n\r\n"
        )
        assert (await talk(port, head + large)).startswith(b"HTTP/1.1 400 ")  # of the JSON's end
        assert b"200 OK" in await talk(port, GOOD)

    run(test)


def test_connection_that_is_closed_takes_its_waiting_request_along() -> None:
    scorer = HeldScorer()

    async def test() -> None:
        async with listening(scorer, Limits()) as (port, api, _):
            scorer.may_run.clear()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(score("running"))
            await until(scorer.began.is_set)
            _, leaving = await asyncio.open_connection("127.0.0.1", port)
            leaving.write(score("left"))
            await until(lambda: api.worker.queue.requests == 1)
            leaving.close()
            await until(lambda: api.worker.queue.requests == 0)
            await until(lambda: api.metrics.abandoned._value.get() == 1)
            scorer.may_run.set()
            # the connection goes on: the next request of the one that stayed is answered too
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
            writer.write(score("next"))
            await until(lambda: "next" in scorer.ran)
            writer.close()
        assert scorer.ran == ["running", "next"]

    run(test)


def test_connection_is_not_read_from_while_its_first_request_waits() -> None:
    scorer = HeldScorer()
    request, count = score("p"), 40_000

    async def test() -> None:
        async with listening(scorer, Limits()) as (port, _, server):
            scorer.may_run.clear()
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request * count)  # one after the other, without waiting for an answer
            await until(scorer.began.is_set)
            (connection,) = server.server_state.connections
            await asyncio.sleep(0.3)
            held = len(connection.pipeline)  # type: ignore[union-attr]
            assert 0 < held < 300_000 // len(request)  # what one read of the socket brings
            writer.transport.abort()
            scorer.may_run.set()
            await until(lambda: not server.server_state.connections)

    run(test)


def test_connection_that_never_reads_its_answers_is_cut_off() -> None:
    async def test() -> None:
        async with listening(HeldScorer(), Limits(body_s=0.3)) as (port, _, server):
            with socket.socket() as mute:
                mute.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                mute.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(mute, ("127.0.0.1", port))
                ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
                await loop.sock_sendall(mute, ask * 1000)  # some 10 MB of answers
                await until(lambda: len(server.server_state.connections) == 1)
                await until(lambda: not server.server_state.connections, 20)
            # one that reads, however much, is not
            got = await talk(port, ask * 400 + GOOD)
            assert got.count(b"HTTP/1.1 200 OK") == 401

    run(test)
