"""Live sessions: a solution that grows step by step, and runs only the tokens that are new.

A session is the tip of a tree of steps (see :mod:`.cache`). ``undo`` goes to the parent and
``fork`` takes the same tip, so neither copies anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Final, Protocol

import numpy as np

from . import scoring
from .awaiting import run_in_thread
from .cache import Buffer, Node
from .encoding import Encoded, RecipeEncoder, check_steps, check_text
from .engine import DecoderEngine
from .errors import ConfigError, InputError, InputTypeError, SessionError
from .prefixes import PrefixCache
from .recipe import Score
from .results import StepScores

_NO_READS: Final = np.zeros(0, dtype=np.int64)


class Track(Protocol):
    """How the steps of one problem are scored. Thread-safe; every fork has the same one."""

    @property
    def incremental(self) -> bool: ...

    def start(self) -> tuple[Node, int]:
        """The node before any step, and the tokens run for it."""
        ...

    def extend(self, tip: Node, steps: Sequence[str], *, keep: bool) -> tuple[list[Node], int]:
        """Score each step as the next one after ``tip``: a node for each, and the tokens run.

        Without ``keep`` nodes cannot become the tip.
        """
        ...


class CachedTrack:
    """Runs the tokens of new steps over the cache of those before."""

    incremental = True

    def __init__(
        self,
        problem: str,
        *,
        encoder: RecipeEncoder,
        engine: Callable[[], DecoderEngine],
        score: Score,
        max_tokens: int,
        prefixes: PrefixCache | None,
    ) -> None:
        self._problem = problem
        self._encoder = encoder
        self._engine = engine
        self._score = score
        self._max_tokens = max_tokens
        self._prefixes = prefixes
        self._spare: list[Buffer] = []  # one, or none while a thread has it

    def start(self) -> tuple[Node, int]:
        ids = self._encoder.encode_prompt(self._problem)
        if len(ids) >= self._max_tokens:
            raise InputError(
                f"the problem alone takes {len(ids)} tokens of the {self._max_tokens} that this "
                "package can score, which leaves none for a step; shorten the problem"
            )
        buffer = Buffer(self._engine(), len(ids))
        prompt = Encoded(ids=ids, reads=_NO_READS, prompt_tokens=len(ids))
        node = self._prefixes.find(prompt) if self._prefixes and len(ids) else None
        n_run = 0
        if node is None:
            buffer.run(0, ids, _NO_READS)
            n_run = len(ids)
            if self._prefixes and n_run:
                node = self._prefixes.keep(prompt, buffer, {})
        if node is None:
            node = buffer.take(None, len(ids))
        self._spare = [buffer]
        return node, n_run

    def _take_buffer(self, engine: DecoderEngine) -> Buffer:
        try:
            return self._spare.pop()  # no two threads get the same
        except IndexError:
            return Buffer(engine)

    def extend(self, tip: Node, steps: Sequence[str], *, keep: bool) -> tuple[list[Node], int]:
        first = None if tip.depth else self._problem
        encoded = [self._encoder.encode_step(step, problem=first) for step in steps]
        for ids in encoded:
            if tip.n_tokens + len(ids) > self._max_tokens:
                raise _too_long(tip.n_tokens + len(ids), self._max_tokens)
        buffer = self._take_buffer(self._engine())
        buffer.lay(tip)
        nodes = []
        for ids in encoded:
            end = tip.n_tokens + len(ids)
            logits = buffer.run(tip.n_tokens, ids, np.array([len(ids) - 1]))
            score = float(scoring.scores_from_logits(logits, self._score)[0])
            nodes.append(
                buffer.take(tip, end, score=score)
                if keep
                else Node(parent=tip, depth=tip.depth + 1, n_tokens=end, score=score)
            )
        self._spare = [buffer]
        return nodes, sum(map(len, encoded))


class RescoredTrack:
    """Scores the whole solution anew for every step: encoders, and recipes that need it."""

    incremental = False

    def __init__(
        self,
        problem: str,
        *,
        encoder: RecipeEncoder,
        score: Callable[[str, Sequence[str]], StepScores],
        max_tokens: int,
    ) -> None:
        self._problem = problem
        self._encoder = encoder
        self._score = score
        self._max_tokens = max_tokens

    def start(self) -> tuple[Node, int]:
        n_tokens = len(self._encoder.encode(self._problem, []).ids)
        return Node(parent=None, depth=0, n_tokens=n_tokens, revised=()), 0

    def extend(self, tip: Node, steps: Sequence[str], *, keep: bool) -> tuple[list[Node], int]:
        taken = [node.step for node in tip.path()[1:]]
        nodes, n_run = [], 0
        for step in steps:
            result = self._score(self._problem, [*taken, step])
            scores = tuple(score for score in result.scores if score is not None)
            if len(scores) < len(result.scores):
                raise _too_long(result.n_tokens, self._max_tokens)
            nodes.append(
                Node(
                    parent=tip,
                    depth=tip.depth + 1,
                    n_tokens=result.n_tokens,
                    score=scores[-1],
                    step=step,
                    revised=scores,
                )
            )
            n_run += result.n_tokens_run
        return nodes, n_run


def _too_long(n_tokens: int, max_tokens: int) -> InputError:
    return InputError(
        f"this step ends at token {n_tokens}, beyond the {max_tokens} that this package can "
        "score; the session is as it was: shorten the step, or undo some before it"
    )


class Session:
    """One solution as it grows. Made by :meth:`.Scorer.session`; one thread at a time.

    ``n_tokens_run`` counts the tokens run by this session itself, ``peek`` included; a fork
    starts at 0. ``incremental``: whether a step runs its own tokens only.
    """

    def __init__(self, track: Track, *, threshold: float, tip: Node | None = None) -> None:
        self._track = track
        self._threshold = threshold
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
        checked = check_steps(steps)
        for index, step in enumerate(checked):
            _check_not_blank(step, f"steps[{index}]")
        with self._using() as tip:
            nodes, n_run = self._track.extend(tip, checked, keep=False)
            self._n_tokens_run += n_run
        return [node.score for node in nodes]

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
            return Session(self._track, threshold=self._threshold, tip=tip)

    @property
    def scores(self) -> tuple[float, ...]:
        """One score per step."""
        tip = self._open_tip()
        if tip.revised is not None:
            return tip.revised
        return tuple(node.score for node in tip.path()[1:])

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
