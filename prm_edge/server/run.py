"""The process: a socket, uvicorn, and an orderly end.

SIGTERM or Ctrl-C stops accepting; what was accepted is answered, within ``drain_s``; then the
process ends with 0. A second Ctrl-C does not wait.
"""

from __future__ import annotations

import ipaddress
import math
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from prometheus_client import disable_created_metrics
from starlette.applications import Starlette

from prm_edge_runtime.errors import ConfigError

from .app import create_app
from .backend import Backend
from .connections import connection_class
from .keys import Keys
from .limits import Limits
from .logs import start_logging

if TYPE_CHECKING:
    from prm_edge_runtime.scorer import Scorer

LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "[::1]")
KEEP_ALIVE_S: Final = 15
BACKLOG: Final = 1024


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; False for a name that is not known."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed_hosts(host: str, more: Sequence[str]) -> tuple[str, ...]:
    """The values of the Host header that are answered.

    Raises:
        ConfigError: for one that has a port, a scheme or a wildcard.
    """
    for name in more:
        if not name or any(sign in name for sign in "/*@ ") or _has_port(name):
            raise ConfigError(
                f"an allowed host must be a name or an address, without scheme, port or '*'; "
                f"got {name[:60]!r}"
            )
    own = f"[{host}]" if ":" in host else host
    return tuple(dict.fromkeys([*LOOPBACK_HOSTS, own, *more]))


def _has_port(name: str) -> bool:
    return ":" in name.rpartition("]")[2]


def check_exposure(host: str, *, has_keys: bool, anyone: bool) -> None:
    """Refuse to listen beyond this machine without keys by mistake.

    Raises:
        ConfigError: when nobody said that anyone may ask.
    """
    if not is_loopback(host) and not has_keys and not anyone:
        raise ConfigError(
            f"{host} can be reached from other machines, and there are no keys; give --keys FILE, "
            "or --anyone if everybody who can reach it may use it"
        )


def open_socket(host: str, port: int) -> socket.socket:
    """Listen; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def url(listening: socket.socket) -> str:
    """Where a socket is reached."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    scorer: Scorer,
    listening: socket.socket,
    *,
    limits: Limits,
    hosts: Sequence[str],
    keys: Keys | None = None,
    with_text: bool = False,
) -> None:
    """Serve until a signal says stop.

    Raises:
        PrmEdgeError: when the model does not pass its self-test.
    """
    start_logging(with_text=with_text)
    make = partial(
        create_app,
        Backend(scorer),
        limits=limits,
        keys=keys,
        hosts=hosts,
        with_text=with_text,
    )
    run_app(lambda failed: make(on_failure=failed), listening, limits=limits)


def run_app(
    make: Callable[[Callable[[BaseException], None]], Starlette],
    listening: socket.socket,
    *,
    limits: Limits,
) -> None:
    """Run an application until a signal says stop; ``make`` gets what to call when it fails."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    config = uvicorn.Config(
        make(failed),
        http=connection_class(limits),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whoever sends X-Forwarded-For would choose whose turn it is
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(limits.drain_s),
    )
    server = uvicorn.Server(config)
    with _signals_end_quietly(), listening:
        server.run(sockets=[listening])
    if failures:
        raise failures[0]


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """uvicorn sends the signal that stopped it once more when it is done."""
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, _nothing) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _nothing(number: int, frame: Any) -> None:
    return None
