"""What every request passes through, before any route is looked at.

Host allow-list, key, content type; a request id; headers that tell browsers to keep out; one log
line and the metrics; and no error leaves but as JSON that holds no path and no stack trace.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .keys import Keys
from .logs import FIELDS, log, logger
from .metrics import OTHER, Metrics
from .refusals import FAILED, RefusedError, refusal
from .worker import ClientGone

# Keys of the scope: what is known of the request, and a future that is done when its client has
# gone, where the connection is one of ours.
SEEN: Final = "prm_edge.seen"
GONE: Final = "prm_edge.gone"
OPEN_PATHS: Final = ("/health",)  # a load balancer has no key
REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
JSON_TYPE: Final = re.compile(rb'application/json *(; *charset *= *"?utf-8"? *)?', re.IGNORECASE)
GONE_STATUS: Final = 499  # as nginx logs a client that went
HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
NO_CONTENT_POLICY: Final = (
    b"content-security-policy",
    b"default-src 'none'; frame-ancestors 'none'",
)
CODES: Final = {404: "not_found", 405: "bad_method"}

Answering: TypeAlias = Callable[[Request], Awaitable[Response]]
_encode: Final = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


@dataclass(slots=True, kw_only=True)
class Seen:
    """What is known of a request so far. ``text``: of the pupil, where it shall be logged."""

    request_id: str
    client: str
    owner: str | None
    route: str = OTHER
    status: int = 0
    tokens: int = 0
    code: str | None = None
    text: Any = None


class JsonResponse(Response):
    """ASCII JSON without anything that JSON does not have."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return _encode(content).encode("ascii")


class Endpoint:
    """What a route of the guard's does, without Starlette's own handling of errors before it."""

    def __init__(self, answer: Answering) -> None:
        self._answer: Final = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)


class Guard:
    """Wraps the application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Sequence[str],
        keys: Keys | None,
        metrics: Metrics,
        route_of: Callable[[Scope], str],
    ) -> None:
        self._app = app
        self._hosts: Final = frozenset(host.lower().encode("ascii", "replace") for host in hosts)
        self._keys: Final = keys
        self._metrics: Final = metrics
        self._route_of: Final = route_of
        # unlike those of another server, or of this one before it was started again
        self._first_id: Final = secrets.token_hex(4)
        self._ids: Final = count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s = time.perf_counter()
        headers = _headers(scope)
        seen = self._identify(scope, headers)
        scope[SEEN] = seen

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                message = {**message, "headers": _with_ours(message["headers"], seen)}
            await send(message)

        try:
            self._check(scope, headers, seen)
            await self._app(scope, receive, send_guarded)
        except (ClientGone, ClientDisconnect):
            self._metrics.abandoned.inc()
            seen.status = seen.status or GONE_STATUS
        except Exception as error:
            await self._answer(error, seen, scope, receive, send_guarded)
        finally:
            seen.route = self._route_of(scope)
            seconds = time.perf_counter() - start_s
            self._metrics.answered(seen.route, scope["method"], seen.status, seconds)
            self._log(scope, seen, seconds)

    def _identify(self, scope: Scope, headers: dict[bytes, list[bytes]]) -> Seen:
        given = headers.get(b"x-request-id", [b""])[0]
        if REQUEST_ID.fullmatch(given):
            request_id = given.decode("ascii")
        else:
            request_id = f"{self._first_id}{next(self._ids):08x}"
        owner = None
        if self._keys is not None:
            authorization = headers.get(b"authorization", [])
            owner = self._keys.owner_of_header(
                authorization[0] if len(authorization) == 1 else None
            )
        address = scope.get("client")
        client = f"key:{owner}" if owner is not None else f"address:{address[0] if address else ''}"
        return Seen(request_id=request_id, client=client, owner=owner)

    def _check(self, scope: Scope, headers: dict[bytes, list[bytes]], seen: Seen) -> None:
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or without_port(hosts[0]) not in self._hosts:
            raise RefusedError(
                "bad_host",
                "this server does not answer to that Host; call it by a name it is allowed, or "
                "start it with --allow-host NAME",
            )
        if self._keys is not None and seen.owner is None and scope["path"] not in OPEN_PATHS:
            raise RefusedError(
                "no_key",
                "this server needs a key: send Authorization: Bearer KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if scope["method"] == "POST":
            types = headers.get(b"content-type", [])
            if len(types) != 1 or not JSON_TYPE.fullmatch(types[0]):
                raise RefusedError(
                    "bad_content_type", "send JSON, with the header Content-Type: application/json"
                )

    async def _answer(
        self, error: Exception, seen: Seen, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if isinstance(error, HTTPException):
            told = RefusedError(
                CODES.get(error.status_code, "bad_request"),
                f"there is no {scope['method'][:16]} here; /openapi.json says what there is",
                headers=dict(error.headers or {}),
            )
        else:
            told = refusal(error)
        seen.code = told.code
        self._metrics.refused.labels(told.code).inc()
        if told.code == "failed":
            fields = {FIELDS: {"request_id": seen.request_id}}
            logger.error("failed", exc_info=error, extra=fields)
        if seen.status:  # too late to say it differently
            return
        if str(told) == FAILED:
            told.headers.setdefault("Connection", "close")
        answer = JsonResponse(
            told.to_dict(seen.request_id), status_code=told.status, headers=told.headers
        )
        await answer(scope, receive, send)

    def _log(self, scope: Scope, seen: Seen, seconds: float) -> None:
        fields: dict[str, Any] = {
            "request_id": seen.request_id,
            "client": seen.client,
            "method": scope["method"][:16],
            "route": seen.route,
            "status": seen.status,
            "ms": round(1000 * seconds, 1),
        }
        if seen.tokens:
            fields["tokens"] = seen.tokens
        if seen.code is not None:
            fields["code"] = seen.code
        if seen.text is not None:
            fields["text"] = seen.text
        log(logging.INFO, "request", **fields)


def guarded(
    routes: Sequence[Route],
    *,
    hosts: Sequence[str],
    keys: Keys | None,
    metrics: Metrics,
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None,
) -> Starlette:
    """Make an application of routes, every request of which passes the guard."""
    paths: dict[Any, str] = {route.endpoint: route.path for route in routes}

    def route_of(scope: Scope) -> str:
        return paths.get(scope.get("endpoint"), OTHER)

    app = _Guarded(routes=list(routes), lifespan=lifespan)
    app.guard = Guard(app.router, hosts=hosts, keys=keys, metrics=metrics, route_of=route_of)
    app.router.redirect_slashes = False  # it would lead to whatever Host was sent
    return app


class _Guarded(Starlette):
    """The guard answers every error itself, so nothing of Starlette's stands around it."""

    guard: Guard

    def build_middleware_stack(self) -> ASGIApp:
        return self.guard


def without_port(host: bytes) -> bytes:
    """The name or address of a Host header, in lower case; IPv6 addresses keep their brackets."""
    match = re.fullmatch(rb"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:[0-9]{1,5})?", host.lower())
    return match[1] if match else b""


def _headers(scope: Scope) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


def _with_ours(headers: Sequence[tuple[bytes, bytes]], seen: Seen) -> list[tuple[bytes, bytes]]:
    ours = [*HEADERS, (b"x-request-id", seen.request_id.encode("ascii"))]
    if not any(name == NO_CONTENT_POLICY[0] for name, _ in headers):
        ours.append(NO_CONTENT_POLICY)
    return [*headers, *ours]
