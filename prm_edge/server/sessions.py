"""Live sessions by id: whose they are, what they may hold together, and when they end.

The event loop's own. What a session holds is counted from above before it holds it, so the cap on
bytes is never passed; forks share memory, and are counted as if they did not.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .limits import MB, Limits
from .metrics import Metrics
from .refusals import RefusedError

if TYPE_CHECKING:
    from prm_edge_runtime.session import Session

ID_BYTES: Final = 16


@dataclass(slots=True, kw_only=True)
class Live:
    """One session. ``reserved``: bytes that are counted for it. ``busy``: a request has it.

    ``unwanted``: nobody will learn its id.
    """

    id: str
    owner: str | None
    reserved: int
    used_s: float
    session: Session | None = None
    busy: bool = False
    unwanted: bool = False


class Sessions:
    """Sessions within ``sessions`` and ``session_bytes``; ``owner`` None where nobody has a key."""

    def __init__(
        self, limits: Limits, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits: Final = limits
        self._metrics: Final = metrics
        self._clock = clock
        self._live: dict[str, Live] = {}
        self._owned: Counter[str | None] = Counter()
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._live)

    def reserve(self, owner: str | None, n_bytes: int) -> Live:
        """Make room for a new session, which is busy until it is given back.

        Raises:
            RefusedError: when there are too many, or they hold too much.
        """
        self.expire()
        limits = self._limits
        if len(self) >= limits.sessions:
            raise self._full(f"there are {len(self)} live sessions, as many as are kept")
        if owner is not None and self._owned[owner] >= limits.share(limits.sessions):
            raise self._full(f"you have {self._owned[owner]} live sessions, as many as one may")
        self._check_bytes(n_bytes)
        live = Live(
            id=secrets.token_urlsafe(ID_BYTES),
            owner=owner,
            reserved=n_bytes,
            used_s=self._clock(),
            busy=True,
        )
        self._live[live.id] = live
        self._owned[owner] += 1
        self.n_bytes += n_bytes
        self._tell()
        return live

    def take(self, id: str, owner: str | None) -> Live:
        """Find a session and hold it until it is given back.

        Raises:
            RefusedError: when there is none that is the owner's, or another request has it.
        """
        self.expire()
        live = self._live.get(id)
        if live is None or live.owner != owner:
            raise RefusedError(
                "no_session",
                f"there is no such session; one that is not used for "
                f"{self._limits.session_idle_s:g} s ends. Start it again with its problem and "
                "steps",
            )
        if live.busy or live.session is None:
            raise RefusedError(
                "conflict", "another request has this session; send one after the other, or fork it"
            )
        live.busy = True
        live.used_s = self._clock()
        return live

    def give_back(self, live: Live, n_bytes: int) -> None:
        """Let others have a session, which holds so much now."""
        live.busy = False
        live.used_s = self._clock()
        if live.id in self._live:
            self.n_bytes += n_bytes - live.reserved
            live.reserved = n_bytes
        self._tell()

    def grow(self, live: Live, n_bytes: int) -> None:
        """Count what a session will hold at most after what is about to run.

        Raises:
            RefusedError: when all of them would hold too much.
        """
        self._check_bytes(n_bytes - live.reserved)
        self.n_bytes += n_bytes - live.reserved
        live.reserved = n_bytes
        self._tell()

    def end(self, live: Live) -> None:
        """Forget a session and free what it holds."""
        if self._live.pop(live.id, None) is None:
            return
        self._owned[live.owner] -= 1
        if not self._owned[live.owner]:
            del self._owned[live.owner]
        self.n_bytes -= live.reserved
        if live.session is not None:
            live.session.close()
        self._tell()

    def expire(self) -> int:
        """End those that nobody used for too long; return how many."""
        oldest = self._clock() - self._limits.session_idle_s
        idle = [live for live in self._live.values() if not live.busy and live.used_s < oldest]
        for live in idle:
            self.end(live)
        self._metrics.sessions_expired.inc(len(idle))
        return len(idle)

    def expires_in_s(self, live: Live) -> float:
        """How long it lives if nobody uses it."""
        return max(0.0, live.used_s + self._limits.session_idle_s - self._clock())

    def close(self) -> None:
        """End all of them."""
        for live in list(self._live.values()):
            if not live.busy:
                self.end(live)

    def _check_bytes(self, more: int) -> None:
        if more > 0 and self.n_bytes + more > self._limits.session_bytes:
            raise self._full(
                f"live sessions would hold {(self.n_bytes + more) / MB:.1f} MB; "
                f"they may hold {self._limits.session_bytes / MB:g} MB"
            )

    def _full(self, what: str) -> RefusedError:
        return RefusedError(
            "too_many_sessions",
            f"{what}; nothing was run: delete sessions that are done with, or try again later",
            retry_after_s=5,
        )

    def _tell(self) -> None:
        self._metrics.sessions.set(len(self))
        self._metrics.session_bytes.set(self.n_bytes)
