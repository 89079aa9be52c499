"""Read bodies: within a size, within a time, and within what all of them may hold together."""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from starlette.requests import Request

from .limits import MB, Limits
from .refusals import RefusedError


class Intake:
    """The bodies that are being read now."""

    def __init__(self, limits: Limits) -> None:
        self._limits: Final = limits
        self.n_bytes = 0

    async def read(self, request: Request) -> bytes:
        """Read the whole body.

        Raises:
            RefusedError: when it is too large, comes too slowly, or too much is being read already.
            ClientDisconnect: when the client goes before its end.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        late = False

        def end() -> None:
            nonlocal late
            late = True
            if task is not None:
                task.cancel()

        # not wait_for, which makes a task of it for every request
        timer = loop.call_later(self._limits.body_s, end)
        try:
            return await self._read(request)
        except asyncio.CancelledError:
            if not late:
                raise
            if task is not None and sys.version_info >= (3, 11):
                task.uncancel()
            raise RefusedError(
                "slow_body",
                f"the body did not arrive within {self._limits.body_s:g} s",
                headers={"Connection": "close"},
            ) from None
        finally:
            timer.cancel()

    async def _read(self, request: Request) -> bytes:
        limits = self._limits
        told = request.headers.get("content-length", "")
        if told.isascii() and told.isdigit() and int(told[:20]) > limits.body_bytes:
            raise self._too_large()
        chunks: list[bytes] = []
        held = 0
        try:
            async for chunk in request.stream():
                held += len(chunk)
                self.n_bytes += len(chunk)
                if held > limits.body_bytes:
                    raise self._too_large()
                if self.n_bytes > limits.bodies_bytes:
                    raise RefusedError("busy", "too much is being sent at once; try again")
                chunks.append(chunk)
        finally:
            self.n_bytes -= held
        return b"".join(chunks)

    def _too_large(self) -> RefusedError:
        return RefusedError(
            "too_large",
            f"the body is larger than the {self._limits.body_bytes / MB:g} MB that are read",
            headers={"Connection": "close"},
        )
