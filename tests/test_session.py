"""Live sessions: what they answer, what they refuse, and that a refusal changes nothing."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from session_scorers import LATE, Bidirectional, make, with_engine

from prm_edge_runtime import Scorer, Session, add_many
from prm_edge_runtime.engine import DecoderEngine
from prm_edge_runtime.errors import (
    ConfigError,
    EngineError,
    InputError,
    InputTypeError,
    SessionError,
)

PROBLEM = "Solve 2x + 3 = 11."
STEPS = ["Subtract 3: 2x = 8", ".", "Divide by 2:\n x = 5", "So x = 4."]
OTHER = "Add 3: 2x = 14"


@pytest.fixture(scope="module")
def scorer(tiny_package: Path) -> Iterator[Scorer]:
    with make(tiny_package) as made:
        yield made


@pytest.fixture
def session(scorer: Scorer) -> Session:
    made = scorer.session(PROBLEM)
    for step in STEPS[:2]:
        made.add(step)
    return made


def state(session: Session) -> tuple[Any, ...]:
    return session.scores, session.n_tokens, session.n_tokens_run


# --- what it answers


def test_session_equals_one_pass(scorer: Scorer) -> None:
    whole = scorer.score(PROBLEM, STEPS)
    with scorer.session(PROBLEM) as session:
        assert session.incremental
        assert [session.add(step) for step in STEPS] == list(whole.scores)
        assert session.scores == whole.scores
        assert session.first_error == whole.first_error == 0
        assert session.verdict == whole.verdict == "flawed"
        assert session.n_tokens == session.n_tokens_run == whole.n_tokens == whole.n_tokens_run


def test_session_without_steps(scorer: Scorer) -> None:
    session = scorer.session(PROBLEM)
    assert session.scores == ()
    assert session.verdict == "unknown"
    assert session.first_error is None
    assert session.n_tokens == session.n_tokens_run == len(scorer._encoder.encode_prompt(PROBLEM))
    session.undo(0)


def test_session_peek_takes_nothing(scorer: Scorer, session: Session) -> None:
    scores, n_tokens, n_run = state(session)
    found = session.peek([STEPS[2], OTHER, STEPS[2]])
    alone = [scorer.score(PROBLEM, [*STEPS[:2], step]) for step in (STEPS[2], OTHER, STEPS[2])]
    assert found == [result.scores[-1] for result in alone]
    assert (session.scores, session.n_tokens) == (scores, n_tokens)
    assert session.n_tokens_run - n_run == sum(result.n_tokens - n_tokens for result in alone)
    assert session.peek([]) == []
    assert session.add(STEPS[2]) == found[0]


def test_session_undo_goes_back(scorer: Scorer, session: Session) -> None:
    whole = scorer.score(PROBLEM, STEPS)
    session.undo()
    assert session.scores == whole.scores[:1]
    session.add(OTHER)
    session.undo(2)
    assert session.scores == ()
    for step in STEPS:
        session.add(step)
    assert session.scores == whole.scores


def test_session_fork_goes_its_own_way(scorer: Scorer, session: Session) -> None:
    fork = session.fork()
    assert fork.n_tokens_run == 0
    assert (fork.scores, fork.n_tokens) == (session.scores, session.n_tokens)
    fork.add(OTHER)
    session.add(STEPS[2])
    session.close()
    fork.add(STEPS[3])
    assert fork.scores == scorer.score(PROBLEM, [*STEPS[:2], OTHER, STEPS[3]]).scores
    assert fork.n_tokens_run == fork.n_tokens - scorer.score(PROBLEM, STEPS[:2]).n_tokens


def test_add_many_takes_one_step_each(scorer: Scorer, session: Session) -> None:
    sessions = [session, session.fork(), scorer.session("Another problem"), session.fork()]
    steps = [OTHER, STEPS[2], STEPS[0], STEPS[3]]
    before = [one.n_tokens_run for one in sessions]
    n_tokens = [one.n_tokens for one in sessions]
    found = add_many(list(zip(sessions, steps, strict=True)))
    assert found == [one.scores[-1] for one in sessions]
    assert found[2] == scorer.score("Another problem", [STEPS[0]]).scores[0]
    for at in (0, 1, 3):
        assert sessions[at].scores == scorer.score(PROBLEM, [*STEPS[:2], steps[at]]).scores
    for one, run, length in zip(sessions, before, n_tokens, strict=True):
        assert one.n_tokens_run - run == one.n_tokens - length
    assert add_many([]) == []


def test_session_threshold_is_the_variants(tiny_package: Path) -> None:
    made = make(tiny_package, thresholds={"default": 0.999})
    session = made.session(PROBLEM)
    session.add(STEPS[0])
    assert session.first_error == 0
    low = make(tiny_package, thresholds={"default": 0.001}).session(PROBLEM)
    low.add(STEPS[0])
    assert (low.first_error, low.verdict) == (None, "sound")


# --- where nothing can be cached


@pytest.mark.parametrize("kind", ["encoder", "late read"])
def test_session_rescores_and_says_so(kind: str, tiny_package: Path) -> None:
    encoder = kind == "encoder"
    made = with_engine(tiny_package, Bidirectional()) if encoder else make(tiny_package, LATE)
    session = made.session(PROBLEM)
    assert not session.incremental
    assert session.n_tokens_run == 0
    assert session.n_tokens == made.score(PROBLEM, []).n_tokens
    n_run = 0
    for count, step in enumerate(STEPS, 1):
        whole = made.score(PROBLEM, STEPS[:count])
        assert session.peek([OTHER]) == [
            made.score(PROBLEM, [*STEPS[: count - 1], OTHER]).scores[-1]
        ]
        n_run += made.score(PROBLEM, [*STEPS[: count - 1], OTHER]).n_tokens + whole.n_tokens
        assert session.add(step) == whole.scores[-1]
        assert session.scores == whole.scores
        assert (session.n_tokens, session.n_tokens_run) == (whole.n_tokens, n_run)
    fork = session.fork()
    fork.undo(2)
    assert fork.scores == made.score(PROBLEM, STEPS[:2]).scores
    assert session.scores == made.score(PROBLEM, STEPS).scores


@pytest.mark.parametrize("kind", ["encoder", "late read"])
def test_session_that_rescores_keeps_the_limit(kind: str, tiny_package: Path) -> None:
    engine = Bidirectional()
    made = (
        with_engine(tiny_package, engine, max_tokens=40)
        if kind == "encoder"
        else make(tiny_package, LATE, max_tokens=40)
    )
    session = made.session(PROBLEM)
    session.add("x")
    before = state(session)
    last = "y" * 200
    if kind == "late read":
        session.add(last)
        before, last = state(session), "z"
    for use in (lambda: session.add(last), lambda: session.peek(["x", last])):
        with pytest.raises(InputError, match="beyond the 40 that this package can score"):
            use()
    assert state(session) == before


# --- wrong use


def test_session_problem_of_another_kind(scorer: Scorer) -> None:
    with pytest.raises(InputTypeError, match="problem must be a string, got int"):
        scorer.session(5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="problem holds a lone surrogate"):
        scorer.session("\ud800")


def test_session_step_of_another_kind(scorer: Scorer, session: Session) -> None:
    before = state(session)
    with pytest.raises(InputTypeError, match="step must be a string, got list"):
        session.add(["x = 4"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="step holds a lone surrogate"):
        session.add("\udfff")
    with pytest.raises(InputTypeError, match=r"cut a whole response into steps"):
        session.peek("x = 4")
    with pytest.raises(InputTypeError, match=r"steps\[1\] must be a string, got int"):
        session.peek(["x", 4])  # type: ignore[list-item]
    assert state(session) == before
    session.add(STEPS[2])
    assert session.scores == scorer.score(PROBLEM, STEPS[:3]).scores


def test_session_refuses_a_blank_step(session: Session) -> None:
    before = state(session)
    for blank in ("", " \n"):
        with pytest.raises(InputError, match=r"^step is blank, which is no step; the session is"):
            session.add(blank)
        with pytest.raises(InputError, match=r"^steps\[1\] is blank"):
            session.peek(["x", blank])
        with pytest.raises(InputError, match=r"^the step of pairs\[1\] is blank"):
            add_many([(session, "x"), (session.fork(), blank)])
    assert state(session) == before
    session.add("x")


def test_session_to_the_exact_limit(scorer: Scorer, tiny_package: Path) -> None:
    whole = scorer.score(PROBLEM, STEPS)
    fits = make(tiny_package, max_tokens=whole.n_tokens).session(PROBLEM)
    assert [fits.add(step) for step in STEPS] == list(whole.scores)
    short = make(tiny_package, max_tokens=whole.n_tokens - 1).session(PROBLEM)
    for step in STEPS[:3]:
        short.add(step)
    before = state(short)
    for use in (lambda: short.add(STEPS[3]), lambda: short.peek(["x", STEPS[3]])):
        with pytest.raises(InputError, match=f"ends at token {whole.n_tokens}, beyond the"):
            use()
    assert state(short) == before
    short.add("x")
    assert short.scores == scorer.score(PROBLEM, [*STEPS[:3], "x"]).scores


def test_session_problem_beyond_the_limit(scorer: Scorer, tiny_package: Path) -> None:
    count = scorer.session(PROBLEM).n_tokens
    with pytest.raises(InputError, match=f"the problem alone takes {count} tokens of the {count}"):
        make(tiny_package, max_tokens=count).session(PROBLEM)
    make(tiny_package, max_tokens=count + 1).session(PROBLEM)


def test_session_undo_past_the_start(session: Session) -> None:
    before = state(session)
    with pytest.raises(SessionError, match="3 steps cannot be taken back: the session has 2"):
        session.undo(3)
    assert state(session) == before
    for wrong in (-1, True, 1.0, "1", None):
        with pytest.raises(ConfigError, match="n must be a whole number of 0 or more, got"):
            session.undo(wrong)  # type: ignore[arg-type]
    assert state(session) == before


def test_session_after_close(session: Session) -> None:
    session.close()
    session.close()
    uses = (
        lambda: session.add("x"),
        lambda: session.peek(["x"]),
        session.undo,
        session.fork,
        lambda: session.scores,
        lambda: session.verdict,
        lambda: session.n_tokens,
        lambda: add_many([(session, "x")]),
    )
    for use in uses:
        with pytest.raises(SessionError, match=r"this session is closed; start another with"):
            use()
    assert session.n_tokens_run > 0


def test_session_of_a_closed_scorer(tiny_package: Path) -> None:
    made = make(tiny_package)
    session = made.session(PROBLEM)
    session.add(STEPS[0])
    before = state(session)
    made.close()
    with pytest.raises(ConfigError, match="this Scorer is closed"):
        session.add("x")
    with pytest.raises(ConfigError, match="this Scorer is closed"):
        made.session(PROBLEM)
    assert state(session) == before


def test_add_many_all_or_none(session: Session) -> None:
    fork = session.fork()
    before = state(session), state(fork)
    closed = session.fork()
    closed.close()
    wrong: list[tuple[Any, type[Exception], str]] = [
        ("text", InputTypeError, r"add_many takes a list of pairs \(session, step\), got str"),
        (5, InputTypeError, r"add_many takes a list of pairs \(session, step\), got int"),
        ([(fork, "x"), session], InputTypeError, r"pairs\[1\] must be a pair \(session, step\)"),
        ([(fork, "x"), ("x", session)], InputTypeError, r"pairs\[1\] must be a pair"),
        ([(fork, "x"), (session, "x", 1)], InputTypeError, r"pairs\[1\] must be a pair"),
        ([(fork, "x"), (session, 5)], InputTypeError, r"the step of pairs\[1\] must be a string"),
        ([(fork, "x"), (fork, "y")], SessionError, r"pairs\[1\] names a session that was named"),
        ([(fork, "x"), (closed, "y")], SessionError, "this session is closed"),
        ([(fork, "x"), (session, "y" * 3000)], InputError, "beyond the 512"),
    ]
    for pairs, kind, said in wrong:
        with pytest.raises(kind, match=said):
            add_many(pairs)
        assert (state(session), state(fork)) == before
    assert len(add_many([(fork, "x"), [session, "y"]])) == 2  # type: ignore[list-item]


def test_session_when_the_model_fails(tiny_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tiny_package)
    session = made.session(PROBLEM)
    session.add(STEPS[0])
    before = state(session)
    engine = made._engine
    assert isinstance(engine, DecoderEngine)
    with monkeypatch.context() as patched:
        patched.setattr(engine, "extend", lambda *_: np.full((1, 2), np.nan, np.float32))
        with pytest.raises(EngineError, match="a logit that is not finite"):
            session.add(STEPS[1])
    assert state(session) == before
    session.add(STEPS[1])
    assert session.scores == made.score(PROBLEM, STEPS[:2]).scores


# --- threads


def test_session_from_two_threads_at_once(scorer: Scorer, session: Session) -> None:
    inside, done = threading.Event(), threading.Event()
    track: Any = session._track
    extend = track.extend

    def slow(*args: Any, **options: Any) -> Any:
        inside.set()
        assert done.wait(30)
        return extend(*args, **options)

    track.extend = slow
    thread = threading.Thread(target=session.add, args=(STEPS[2],))
    thread.start()
    assert inside.wait(30)
    uses = (lambda: session.add("x"), lambda: session.peek(["x"]), session.undo, session.close)
    for use in uses:
        with pytest.raises(SessionError, match=r"in use in another thread; give each thread"):
            use()
    done.set()
    thread.join()
    session.add(STEPS[3])
    assert session.scores == scorer.score(PROBLEM, STEPS).scores


def test_session_forks_in_sixteen_threads(scorer: Scorer, session: Session) -> None:
    texts = [[f"line {n} of {number}: {n * number}" for n in range(6)] for number in range(16)]
    expected = [scorer.score(PROBLEM, [*STEPS[:2], *steps]).scores for steps in texts]
    found: list[Any] = [None] * len(texts)

    def work(number: int, fork: Session) -> None:
        for step in texts[number]:
            fork.peek([OTHER])
            fork.add(step)
            fork.undo()
            fork.add(step)
        found[number] = fork.scores

    threads = [threading.Thread(target=work, args=(number, session.fork())) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == expected


def test_node_is_frozen(session: Session) -> None:
    tip = session._tip
    assert tip is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        tip.score = 1.0  # type: ignore[misc]
