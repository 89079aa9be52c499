"""The model behind the server: the only module that knows :class:`Scorer` and :class:`Session`.

Everything here that runs the model is called in the worker's thread, and returns its result
together with the tokens that it ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from prm_edge.error_words import all_in_words
from prm_edge.jobs import Job, rounded
from prm_edge_runtime import scoring
from prm_edge_runtime.encoding import DIRECT_CHARACTERS
from prm_edge_runtime.errors import PrmEdgeError
from prm_edge_runtime.kinds import known_kinds
from prm_edge_runtime.version import __version__

from .queue import Solution

if TYPE_CHECKING:
    from prm_edge_runtime.prefixes import PrefixCounters
    from prm_edge_runtime.results import StepScores
    from prm_edge_runtime.scorer import Scorer
    from prm_edge_runtime.session import Session

Answer: TypeAlias = dict[str, Any]

BYTES_PER_TOKEN: Final = 3  # of text, about; mathematics has fewer, which is settled afterwards
TOKENS_PER_STEP: Final = 4  # tags and templates around it, about
FLOAT_BYTES: Final = 4
# A session's own keys and values, and a working buffer of at most twice its length.
KV_COPIES: Final = 3
SESSION_BYTES: Final = 16_384  # of a session besides, at the least
TEXT_BYTES: Final = 16  # of a token: its id, and its text where that is kept
SCORE_BYTES: Final = 16
STEP_BYTES: Final = 64  # of a step's kinds of error, and of each of them
KIND_BYTES: Final = 32
TOKENS_PER_STEP_AT_MOST: Final = 256  # of a recipe's template around a step


def estimated_tokens(texts: Sequence[str]) -> int:
    """About how many tokens a problem and its steps are. 1 or more."""
    n_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return 1 + n_bytes // BYTES_PER_TOKEN + TOKENS_PER_STEP * len(texts)


class Backend:
    """One scorer, and how its results are told."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._describe = Job(scorer=scorer).describe
        variant = scorer.package.variant(scorer.variant)
        self._kv_bytes = 2 * variant.layers * variant.kv_heads * variant.head_dim * FLOAT_BYTES
        self._kinds = known_kinds(scorer.package.manifest.error_kinds)
        self._step_bytes = STEP_BYTES + KIND_BYTES * len(self._kinds) if self._kinds else 0

    def self_test(self) -> float:
        """See :meth:`.Scorer.self_test`."""
        return self._scorer.self_test()

    def prefix_counters(self) -> PrefixCounters:
        """What the prefix cache has saved, and holds; may be called in any thread."""
        return self._scorer.prefix_cache

    def check_aggregate(self, by: str | None) -> None:
        """Raise :class:`ConfigError` for an aggregate that the recipe does not define."""
        if by is not None:
            scoring.aggregate((), by, self._scorer.recipe.aggregates)

    def split(self, response: str) -> tuple[str, ...]:
        """Cut a response into steps."""
        return tuple(self._scorer.split(response))

    def solution(self, problem: str, steps: tuple[str, ...]) -> Solution:
        """What waits for the model. A short text is checked and encoded now, while that is busy.

        Raises:
            InputError: for what the scorer refuses; a long text is refused when its turn comes.
        """
        short = len(problem) + sum(map(len, steps)) <= DIRECT_CHARACTERS
        prepared = self._scorer.prepare(problem, steps) if short else None
        return Solution(problem=problem, steps=steps, prepared=prepared)

    def score_many(self, solutions: Sequence[Solution]) -> list[tuple[StepScores, int] | Exception]:
        """Score solutions together; what is wrong with one of them is its own result alone.

        They are told by :meth:`told`, elsewhere: the model goes on meanwhile.
        """
        try:
            prepared = [self._prepared(one) for one in solutions]
            scored = self._scorer.score_prepared(prepared)
        except PrmEdgeError:
            # one of them is wrong: each says for itself whether it is the one
            return [self._score(one) for one in solutions]
        return [(result, result.n_tokens_run) for result in scored]

    def _prepared(self, one: Solution) -> Any:
        return one.prepared or self._scorer.prepare(one.problem, one.steps)

    def _score(self, one: Solution) -> tuple[StepScores, int] | Exception:
        try:
            (result,) = self._scorer.score_prepared([self._prepared(one)])
        except Exception as error:
            return error
        return result, result.n_tokens_run

    def told(self, result: StepScores) -> Answer:
        """What a client is told of one solution; as ``prm-edge score`` writes it."""
        return {**self._describe(result), **self.about}

    def rank(
        self, problem: str, candidates: Sequence[tuple[str, ...]], by: str | None
    ) -> tuple[Answer, int]:
        """Compare candidates; the same shape that ``prm-edge score`` writes."""
        ranking = self._scorer.rank(problem, candidates, by)
        described = [self._describe(candidate) for candidate in ranking.candidates]
        for candidate in described:
            del candidate["threshold"]  # one for all of them
        answer = {
            "candidates": described,
            "order": list(ranking.order),
            "best": ranking.best,
            "best_sound": ranking.best_sound,
            "by": ranking.by,
            "threshold": self._scorer.threshold,
            **self.about,
        }
        return answer, sum(candidate.n_tokens_run for candidate in ranking.candidates)

    def open_session(self, problem: str, steps: Sequence[str]) -> tuple[Session, int]:
        """Start a session and take its first steps."""
        session = self._scorer.session(problem)
        try:
            for step in steps:
                session.add(step)
        except BaseException:
            session.close()
            raise
        return session, session.n_tokens_run

    def add(self, session: Session, steps: Sequence[str]) -> tuple[list[float | None], int]:
        """Take all of the steps, or none; return the score of each."""
        before, taken = session.n_tokens_run, 0
        try:
            for step in steps:
                session.add(step)
                taken += 1
        except BaseException:
            session.undo(taken)
            raise
        scores = session.scores[len(session.scores) - len(steps) :]
        return [rounded(score) for score in scores], session.n_tokens_run - before

    def peek(self, session: Session, steps: Sequence[str]) -> tuple[Answer, int]:
        """Score alternatives for the next step; none is taken."""
        before = session.n_tokens_run
        found = session.peek_named(steps)
        answer: Answer = {"scores": [rounded(score) for score, _ in found]}
        if self._kinds:
            answer["error_kinds"] = [kind for _, kind in found]
        return {**answer, **self.about}, session.n_tokens_run - before

    def session_state(self, session: Session) -> Answer:
        """Where a session stands."""
        kinds = session.error_kinds
        return {
            "scores": [rounded(score) for score in session.scores],
            "verdict": session.verdict,
            "first_error": session.first_error,
            "threshold": self._scorer.threshold,
            "n_tokens": session.n_tokens,
            "incremental": session.incremental,
            **({} if kinds is None else {"error_kinds": list(kinds)}),
            **self.about,
        }

    def session_bytes(self, session: Session) -> int:
        """The most that a session holds; what forks share is counted for each."""
        return self._bytes(session.n_tokens, len(session.scores), session)

    def session_bytes_after(self, session: Session | None, texts: Sequence[str]) -> int:
        """The most that a session would hold with these texts behind it."""
        n_tokens = len(texts) * TOKENS_PER_STEP_AT_MOST + sum(
            len(text.encode("utf-8", "surrogatepass")) for text in texts
        )
        n_steps = len(texts)
        if session is not None:
            n_tokens += session.n_tokens
            n_steps += len(session.scores)
        return self._bytes(min(n_tokens, self._scorer.max_tokens), n_steps, session)

    def _bytes(self, n_tokens: int, n_steps: int, session: Session | None) -> int:
        # where nothing is cached, every step keeps the scores of those before it, and their kinds
        repeated = 1 if session is not None and session.incremental else n_steps
        return (
            SESSION_BYTES
            + KV_COPIES * self._kv_bytes * n_tokens
            + TEXT_BYTES * n_tokens
            + SCORE_BYTES * n_steps * n_steps
            + self._step_bytes * n_steps * repeated
        )

    @property
    def about(self) -> dict[str, str]:
        """Which package and variant gave a score."""
        return {"package": self._scorer.package.short, "variant": self._scorer.variant}

    def info(self) -> Answer:
        """What a client may want to know of the package; no path is in it."""
        scorer = self._scorer
        recipe, manifest = scorer.recipe, scorer.package.manifest
        return {
            "version": __version__,
            "name": manifest.name,
            **self.about,
            "device": scorer.device,
            "family": recipe.family,
            "score_range": None if recipe.score.range is None else list(recipe.score.range),
            "threshold": scorer.threshold,
            "label_meaning": recipe.label_meaning,
            "aggregates": list(recipe.aggregates),
            "default_aggregate": recipe.aggregate,
            "max_tokens": scorer.max_tokens,
            **({"error_kinds": all_in_words(self._kinds)} if self._kinds else {}),
            "notice": manifest.provenance.get("notice"),
        }
