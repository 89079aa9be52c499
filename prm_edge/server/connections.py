"""Connections, on top of uvicorn's: not too many, and none that never says what it wants.

uvicorn itself limits how long a connection may be idle between requests, not how long the head of
one may take.
"""

from __future__ import annotations

import asyncio
import json
import socket

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from .limits import Limits
from .refusals import RefusedError


def connection_class(limits: Limits) -> type[asyncio.Protocol]:
    """The class of one server's connections."""
    full = too_many(limits.connections)

    class Connection(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # asyncio does so only for sockets that say they are TCP, which create_server's do not:
            # without it the body of an answer waits 40 ms for the client to confirm its head
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if len(self.connections) > limits.connections:
                transport.write(full)
                transport.close()
            else:
                self._arm()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            cycle: RequestResponseCycle | None = self.cycle
            if cycle is not None and not cycle.response_complete:
                self._disarm()
            else:
                self._arm()  # the beginning of a head

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

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
