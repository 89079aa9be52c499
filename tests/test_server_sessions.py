"""The books of live sessions: what is counted, whose they are, when they end."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_edge.server.limits import Limits
from prm_edge.server.metrics import Metrics
from prm_edge.server.refusals import RefusedError
from prm_edge.server.sessions import Live, Sessions


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Closable:
    closed = False

    def close(self) -> None:
        self.closed = True


def opened(sessions: Sessions, owner: str | None = None, n_bytes: int = 10) -> Live:
    live = sessions.reserve(owner, n_bytes)
    session: Any = Closable()
    live.session = session
    sessions.give_back(live, n_bytes)
    return live


def make(clock: Clock | None = None, **limits: float) -> Sessions:
    given: dict[str, Any] = {"sessions": 4, "session_bytes": 100, "session_idle_s": 60.0, **limits}
    return Sessions(Limits(**given), Metrics({"name": "n"}), clock or Clock())


def test_sessions_count_what_is_held_and_free_it() -> None:
    sessions = make()
    live = opened(sessions, n_bytes=30)
    assert sessions.take(live.id, None) is live
    sessions.grow(live, 90)
    assert sessions.n_bytes == 90
    with pytest.raises(RefusedError, match="live sessions would hold"):
        sessions.grow(live, 101)
    assert sessions.n_bytes == 90
    sessions.give_back(live, 40)
    assert sessions.n_bytes == 40
    closable: Any = live.session
    sessions.end(live)
    sessions.end(live)
    assert (len(sessions), sessions.n_bytes, closable.closed) == (0, 0, True)


def test_sessions_that_are_used_stay() -> None:
    clock = Clock()
    sessions = make(clock)
    used, unused, busy = opened(sessions), opened(sessions), sessions.reserve(None, 5)
    clock.now_s = 50
    sessions.give_back(sessions.take(used.id, None), 10)
    assert sessions.expires_in_s(used) == 60
    clock.now_s = 61
    assert sessions.expire() == 1
    with pytest.raises(RefusedError, match="there is no such session") as refused:
        sessions.take(unused.id, None)
    assert refused.value.status == 404
    assert len(sessions) == 2
    assert busy.busy
    sessions.close()
    assert len(sessions) == 1  # a request still has it


def test_sessions_have_ids_that_nobody_guesses() -> None:
    sessions = make(sessions=100, session_bytes=10_000)
    ids = {opened(sessions).id for _ in range(100)}
    assert len(ids) == 100
    assert all(len(one) >= 22 for one in ids)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "grow", "end", "wait"]),
            st.sampled_from(["anna", "ben"]),
            st.integers(0, 60),
        ),
        max_size=40,
    )
)
def test_sessions_never_pass_their_caps(todo: list[tuple[str, str, int]]) -> None:
    clock = Clock()
    sessions = make(clock)
    live: dict[str, Live] = {}
    for action, owner, number in todo:
        mine = [one for one in live.values() if one.owner == owner]
        with suppress(RefusedError):
            if action == "open":
                one = opened(sessions, owner, number)
                live[one.id] = one
            elif action == "wait":
                clock.now_s += number
            elif mine and action == "grow":
                one = sessions.take(mine[number % len(mine)].id, owner)
                try:
                    sessions.grow(one, one.reserved + number)
                finally:
                    sessions.give_back(one, one.reserved)
            elif mine and action == "end":
                sessions.end(mine[number % len(mine)])
        live = {id: one for id, one in live.items() if id in sessions._live}
        assert len(sessions) == len(live) <= 4
        assert sessions.n_bytes == sum(one.reserved for one in live.values()) <= 100
        for name in ("anna", "ben"):
            assert sum(one.owner == name for one in live.values()) <= 3
