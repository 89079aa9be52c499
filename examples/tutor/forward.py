"""Hand what the pages ask on to a ``prm-edge serve``.

A browser may ask only where its page came from, and the server allows no other page to ask it; so
this process asks, with the key if there is one, which never leaves it.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prm_edge.server.guard import guarded
from prm_edge.server.intake import Intake
from prm_edge.server.limits import Limits
from prm_edge.server.metrics import Metrics
from prm_edge.server.refusals import RefusedError
from prm_edge_runtime.errors import ConfigError

TIMEOUT_S = 60.0
# what the pages ask, and nothing else: no metrics, no path that another server might resolve
ASKED = re.compile(r"/(health|info|v1/[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+){0,2})")
PASSED_BACK = ("content-type", "retry-after")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """The server that scores. ``key`` is sent with every request."""

    scheme: str
    host: str
    port: int | None
    key: str | None

    @classmethod
    def read(cls, url: str, key_file: Path | None) -> Upstream:
        """Take a URL and a file that holds a key apart.

        Raises:
            ConfigError: when the URL is not one of a server, or the key cannot be read.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise ConfigError(
                f"--server must be the address of a prm-edge serve, such as "
                f"http://127.0.0.1:8765; got {url[:60]!r}"
            )
        key = None if key_file is None else _read_key(key_file)
        return cls(scheme=parts.scheme, host=parts.hostname, port=port, key=key)

    @property
    def url(self) -> str:
        """Where it is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + (f":{self.port}" if self.port is not None else "")

    def ask(self, method: str, path: str, body: bytes, request_id: str | None) -> Response:
        """Send one request and read the whole answer.

        Raises:
            OSError, HTTPException: when there is no answer.
        """
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        connection = kinds[self.scheme](self.host, self.port, timeout=TIMEOUT_S)
        headers = {"Content-Type": "application/json"} if method == "POST" else {}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        if request_id is not None:
            headers["X-Request-ID"] = request_id
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            back = {name: value for name in PASSED_BACK if (value := answer.headers.get(name))}
            return Response(answer.read(), status_code=answer.status, headers=back)
        finally:
            connection.close()


def _read_key(file: Path) -> str:
    try:
        key = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"the key in {str(file)!r} cannot be read") from None
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ConfigError(f"{str(file)!r} must hold one key and nothing else")
    return key


def forwarding_app(
    upstream: Upstream, pages: Sequence[Route], *, hosts: Sequence[str], limits: Limits
) -> Starlette:
    """The pages, and the calls that they make, answered by another server."""
    intake = Intake(limits)

    async def forward(request: Request) -> Response:
        path = request.scope["path"]
        if not ASKED.fullmatch(path):
            raise RefusedError("not_found", "the tutor does not hand this on")
        body = await intake.read(request)
        try:
            return await run_in_threadpool(
                upstream.ask, request.method, path, body, request.headers.get("x-request-id")
            )
        except (OSError, http.client.HTTPException):
            raise RefusedError(
                "not_ready", "the server that scores does not answer; try again"
            ) from None

    routes = [
        *pages,
        Route("/health", forward),
        Route("/info", forward),
        Route("/v1/{rest:path}", forward, methods=["GET", "POST", "DELETE"]),
    ]
    return guarded(routes, hosts=hosts, keys=None, metrics=Metrics({"name": "tutor"}))
