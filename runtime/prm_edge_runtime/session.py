"""Live sessions: a solution that grows step by step, and runs only the tokens that are new.

A session is the tip of a tree of steps (see :mod:`.cache`). ``undo`` goes to the parent and
``fork`` takes the same tip, so neither copies anything.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType

from . import scoring
from .awaiting import run_in_thread
from .cache import Node
from .encoding import check_steps, check_text
from .errors import ConfigError, InputError, InputTypeError, SessionError
from .kinds import StepKinds
from .reading import Reading
from .tracks import Track


class Session:
    """One solution as it grows. Made by :meth:`.Scorer.session`; one thread at a time.

    ``n_tokens_run`` counts the tokens run by this session itself, ``peek`` included; a fork
    starts at 0. ``incremental``: whether a step runs its own tokens only. ``reading``: what names
    errors, None where nothing does.
    """

    def __init__(
        self,
        track: Track,
        *,
        threshold: float,
        reading: Reading | None = None,
        tip: Node | None = None,
    ) -> None:
        self._track = track
        self._threshold = threshold
        self._reading = reading
        self._lock = threading.Lock()
        self._n_tokens_run = 0
        if tip is None:
            tip, self._n_tokens_run = track.start()
        self._tip: Node | None = tip

    def add(self, step: str) -> float:
        """Take a step; return its score, the one that a whole pass would give.

        Raises:
            InputTypeError, InputError: for text that cannot be encoded, for a step that is blank,
                and for one that ends beyond ``max_tokens``; the session is as it was.
            SessionError: when the session is closed, or in use in another thread.
            EngineError: when the model fails; the session is as it was.
        """
        return add_many([(self, step)])[0]

    def peek(self, steps: Sequence[str]) -> list[float]:
        """Score alternatives for the next step, one by one, and take none of them.

        Raises:
            InputTypeError, InputError, SessionError, EngineError: as :meth:`add`.
        """
        return [node.score for node in self._peeked(steps)]

    def peek_named(self, steps: Sequence[str]) -> list[tuple[float, str | None]]:
        """:meth:`peek`, and the kind of error that :attr:`error_kinds` would have for each.

        Raises:
            InputTypeError, InputError, SessionError, EngineError: as :meth:`add`.
        """
        named = [(node, self._kinds(node)) for node in self._peeked(steps)]
        return [
            (node.score, kinds.named(_scores(node), self._threshold)[-1] if kinds else None)
            for node, kinds in named
        ]

    def _peeked(self, steps: Sequence[str]) -> list[Node]:
        checked = check_steps(steps)
        for index, step in enumerate(checked):
            _check_not_blank(step, f"steps[{index}]")
        with self._using() as tip:
            nodes, n_run = self._track.extend(tip, checked, keep=False)
            self._n_tokens_run += n_run
        return nodes

    def _kinds(self, tip: Node) -> StepKinds | None:
        if self._reading is None:
            return None
        likely = tip.revised_kinds
        if tip.revised is None:
            likely = tuple(node.kinds for node in tip.path()[1:])
        return self._reading.step_kinds(likely or ())

    async def aadd(self, step: str) -> float:
        """Await :meth:`add` without blocking the event loop; see :mod:`.awaiting`.

        One at a time, as with threads. An ``aadd`` that is cancelled while it runs takes its step.
        """
        return await run_in_thread(self.add, step)

    async def apeek(self, steps: Sequence[str]) -> list[float]:
        """Await :meth:`peek`."""
        return await run_in_thread(self.peek, steps)

    def undo(self, n: int = 1) -> None:
        """Take back the last ``n`` steps.

        Raises:
            ConfigError: when ``n`` is not a whole number of 0 or more.
            SessionError: when there are fewer steps; also as :meth:`add`.
        """
        with self._using() as tip:
            for _ in range(_count(n)):
                if tip.parent is None:
                    raise SessionError(
                        f"{n} steps cannot be taken back: the session has {len(self.scores)}; "
                        "it is as it was"
                    )
                tip = tip.parent
            self._tip = tip

    def fork(self) -> Session:
        """Make a session of its own that goes on from here; nothing is copied.

        Raises:
            SessionError: as :meth:`add`.
        """
        with self._using() as tip:
            return Session(self._track, threshold=self._threshold, reading=self._reading, tip=tip)

    @property
    def scores(self) -> tuple[float, ...]:
        """One score per step."""
        return _scores(self._open_tip())

    @property
    def error_kinds(self) -> tuple[str | None, ...] | None:
        """The kind of error of each step that counts as one; see :attr:`.StepScores.error_kinds`.

        None as a whole where the package does not name errors.
        """
        tip = self._open_tip()
        kinds = self._kinds(tip)
        return None if kinds is None else kinds.named(_scores(tip), self._threshold)

    @property
    def first_error(self) -> int | None:
        """Index of the first step below the threshold; None if none."""
        return scoring.first_error(self.scores, self._threshold)

    @property
    def verdict(self) -> str:
        """``sound``, ``flawed``, or ``unknown`` before the first step."""
        return scoring.verdict(self.scores, self._threshold)

    @property
    def n_tokens(self) -> int:
        """Tokens of the problem and the steps taken, up to the last score."""
        return self._open_tip().n_tokens

    @property
    def n_tokens_run(self) -> int:
        """Tokens that this session has run so far."""
        return self._n_tokens_run

    @property
    def incremental(self) -> bool:
        """False where every step runs the whole solution again, as with encoders."""
        return self._track.incremental

    def close(self) -> None:
        """Let go of the cache, which forks may go on using. Closing twice does nothing.

        Raises:
            SessionError: when the session is in use in another thread.
        """
        if self._tip is not None:
            with self._using():
                self._tip = None

    def _open_tip(self) -> Node:
        tip = self._tip
        if tip is None:
            raise SessionError("this session is closed; start another with scorer.session(problem)")
        return tip

    @contextmanager
    def _using(self) -> Iterator[Node]:
        if not self._lock.acquire(blocking=False):
            raise SessionError(
                "this session is in use in another thread; give each thread its own fork()"
            )
        try:
            yield self._open_tip()
        finally:
            self._lock.release()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _scores(tip: Node) -> tuple[float, ...]:
    if tip.revised is not None:
        return tip.revised
    return tuple(node.score for node in tip.path()[1:])


def add_many(pairs: Sequence[tuple[Session, str]]) -> list[float]:
    """Add one step to each of several sessions, as for one depth of a beam; return the scores.

    All of them take their step, or none does.

    Raises:
        InputTypeError: for anything but pairs (session, step).
        SessionError: for a session that is there twice; also as :meth:`Session.add`.
        InputError, EngineError: as :meth:`Session.add`.
    """
    sessions: list[Session] = []
    for index, pair in enumerate(_sequence(pairs)):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], Session):
            raise InputTypeError(
                f"pairs[{index}] must be a pair (session, step), got {repr(pair)[:60]}"
            )
        what = "step" if len(pairs) == 1 else f"the step of pairs[{index}]"
        _check_not_blank(check_text(pair[1], what), what)
        if any(pair[0] is session for session in sessions):
            raise SessionError(
                f"pairs[{index}] names a session that was named before; fork() it for each step"
            )
        sessions.append(pair[0])
    with ExitStack() as stack:
        tips = [stack.enter_context(session._using()) for session in sessions]
        taken: dict[int, Node] = {}
        runs: dict[int, int] = {}
        # steps after the same tip one after the other: then its cache is laid out already
        for index in sorted(range(len(tips)), key=lambda index: id(tips[index])):
            track, step = sessions[index]._track, pairs[index][1]
            (taken[index],), runs[index] = track.extend(tips[index], [step], keep=True)
        for index, session in enumerate(sessions):
            session._tip = taken[index]
            session._n_tokens_run += runs[index]
    return [taken[index].score for index in range(len(sessions))]


def _check_not_blank(step: str, what: str) -> None:
    # a file may hold one, and gets its score; nobody adds one on purpose
    if not step.strip():
        raise InputError(
            f"{what} is blank, which is no step; the session is as it was: pass the text of a step"
        )


def _count(n: object) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ConfigError(f"n must be a whole number of 0 or more, got {repr(n)[:40]}")
    return n


def _sequence(pairs: object) -> Sequence[object]:
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Sequence):
        raise InputTypeError(
            f"add_many takes a list of pairs (session, step), got {type(pairs).__name__}"
        )
    return pairs
