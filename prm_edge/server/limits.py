"""What one server takes on, as plain numbers. Nothing in it grows beyond them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Final

from prm_edge_runtime.errors import ConfigError

MB: Final = 1_000_000
# Of the queue and of the sessions: the rest is for everybody else, whatever one client sends.
CLIENT_SHARE: Final = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """All are more than 0. Tokens are estimated from the length of the text before it is run.

    ``batch_tokens``: run in one go, so how long others wait. ``body_s``: to send a body, or to go
    on reading answers.
    ``deadline_s``: how long a request may wait for its turn. ``drain_s``: how long a stopping
    server goes on for the requests it has accepted.
    """

    body_bytes: int = 1 * MB
    bodies_bytes: int = 64 * MB  # of all requests together
    body_s: float = 10.0
    connections: int = 1024
    header_s: float = 10.0  # until the first request of a connection is there
    steps: int = 512  # of all candidates together
    candidates: int = 128
    request_tokens: int = 16_384
    queue_requests: int = 256
    queue_tokens: int = 131_072
    batch_tokens: int = 512  # more at once is no faster, and the model waits for the answers
    deadline_s: float = 30.0
    sessions: int = 256
    session_bytes: int = 512 * MB
    session_idle_s: float = 900.0
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"{field.name} must be a number, got {value!r}")
            if not 0 < value < math.inf:
                raise ConfigError(f"{field.name} must be more than 0 and finite, got {value!r}")

    def share(self, whole: int) -> int:
        """How much of something one client may have."""
        return max(1, math.floor(whole * CLIENT_SHARE))
