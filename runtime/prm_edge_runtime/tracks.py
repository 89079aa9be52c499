"""How the steps of one problem are scored as they come: over a cache, or all of them anew.

In: a node of the tree of steps (:mod:`.cache`) and the steps that may follow it. Out: a node for
each. Thread-safe; every fork of a session has the same track.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np

from .cache import Buffer, Node
from .encoding import Encoded, RecipeEncoder
from .engine import DecoderEngine
from .errors import InputError
from .prefixes import PrefixCache
from .reading import Reading
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
        reading: Reading,
        max_tokens: int,
        prefixes: PrefixCache | None,
    ) -> None:
        self._problem = problem
        self._encoder = encoder
        self._engine = engine
        self._reading = reading
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
            rows = buffer.run(tip.n_tokens, ids, np.array([len(ids) - 1]))
            score = float(self._reading.scores(rows)[0])
            found = self._reading.likely(rows)
            kinds = None if found is None else found[0]
            nodes.append(
                buffer.take(tip, end, score=score, kinds=kinds)
                if keep
                else Node(parent=tip, depth=tip.depth + 1, n_tokens=end, score=score, kinds=kinds)
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
            kinds = None if result.kinds is None else result.kinds.probabilities
            nodes.append(
                Node(
                    parent=tip,
                    depth=tip.depth + 1,
                    n_tokens=result.n_tokens,
                    score=scores[-1],
                    kinds=None if kinds is None else kinds[-1],
                    step=step,
                    revised=scores,
                    revised_kinds=kinds,
                )
            )
            n_run += result.n_tokens_run
        return nodes, n_run


def _too_long(n_tokens: int, max_tokens: int) -> InputError:
    return InputError(
        f"this step ends at token {n_tokens}, beyond the {max_tokens} that this package can "
        "score; the session is as it was: shorten the step, or undo some before it"
    )
