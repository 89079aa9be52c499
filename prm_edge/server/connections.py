"""Connections, on top of uvicorn's: not too many, and none that stays mute or never listens.

uvicorn itself limits how long a connection may be idle between requests, not how long the head of
one may take, nor how large it may be, nor how long a client may leave its answers unread.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .guard import GONE
from .limits import Limits
from .refusals import RefusedError

MAX_HEAD_BYTES: Final = 65_536
TOO_LARGE_HEAD: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)


class Joined:
    """A transport that sends the head and the body of an answer together.

    uvicorn writes them one by one: two system calls, and a client that is woken twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport: Final = transport
        self._loop: Final = loop
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send with whatever else is written before the loop's next turn."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)

    def _flush(self) -> None:
        if self._held:
            self._transport.write(b"".join(self._held))
            self._held.clear()

    def close(self) -> None:
        """Send what was written, and close."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def connection_class(limits: Limits) -> type[asyncio.Protocol]:
    """The class of one server's connections."""
    full = too_many(limits.connections)

    class Connection(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        _head_bytes = 0
        _in_head = True

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(Joined(transport, self.loop))  # type: ignore[arg-type]
            self._gone = self.loop.create_future()
            # asyncio does so only for sockets that say they are TCP, which create_server's do not:
            # without it the end of a long answer waits 40 ms for the client to confirm the rest
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if len(self.connections) > limits.connections:
                self.transport.write(full)
                self.transport.close()
            else:
                self._arm()

        def data_received(self, data: bytes) -> None:
            if self._in_head:
                self._head_bytes += len(data)
            super().data_received(data)
            cycle: RequestResponseCycle | None = self.cycle
            if cycle is not None and not cycle.response_complete:
                self._disarm()
            else:
                self._arm()  # the beginning of a head
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(TOO_LARGE_HEAD)
                self.transport.close()

        def on_headers_complete(self) -> None:
            self._head_bytes = 0
            self._in_head = False
            self.scope[GONE] = self._gone  # type: ignore[typeddict-unknown-key]
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._in_head = True

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(limits.body_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._listens()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            self._listens()
            if not self._gone.done():
                self._gone.set_result(None)
            super().connection_lost(exc)

        def _listens(self) -> None:
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def _arm(self) -> None:
            if self._timer is None and not self.transport.is_closing():
                self._timer = self.loop.call_later(limits.header_s, self.transport.close)

        def _disarm(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Connection


def too_many(most: int) -> bytes:
    """The whole answer for a connection over the limit."""
    told = RefusedError("busy", f"the server has {most} connections, its limit; try again")
    body = json.dumps(told.to_dict("")).encode("ascii")
    head = (
        "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: {told.headers['Retry-After']}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
