"""What scoring returns: frozen data, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from . import scoring
from .kinds import StepKinds

SCORED: Final = "scored"
TOO_LONG: Final = "too_long"
WINDOWED: Final = "windowed"
OUT_OF_DOMAIN: Final = "out_of_domain"
STATUSES: Final = (SCORED, TOO_LONG, WINDOWED, OUT_OF_DOMAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepScores:
    """Scores of one solution, one entry per step given.

    ``scores``: in the recipe's range, None where ``status`` is ``too_long`` or ``out_of_domain``.
    ``status``: ``scored``; ``too_long`` for a step that ends beyond the package's limit;
    ``windowed`` for one that was scored with the problem and only the last steps before it; or
    ``out_of_domain`` where the embedded default cannot judge the record. ``threshold``: a score
    below it counts as an error. ``redundancy``: how redundant each step is, None where the recipe
    does not say. ``n_tokens``: length of the whole record;
    ``n_tokens_run``: tokens the model really ran for it, without those that it shares with another
    record run before it; results may be equal whatever was run. ``default_aggregate``: the
    recipe's own. ``kinds``: what each step would be if it is an error, None where the package does
    not name errors; :attr:`error_kinds` says which steps are.
    """

    scores: tuple[float | None, ...]
    status: tuple[str, ...]
    threshold: float
    n_tokens: int
    n_tokens_run: int = field(compare=False)
    aggregates: tuple[str, ...]
    default_aggregate: str
    logits: tuple[tuple[float, ...] | None, ...] = field(repr=False)
    redundancy: tuple[float | None, ...] | None = None
    kinds: StepKinds | None = field(default=None, repr=False)

    @property
    def first_error(self) -> int | None:
        """Index of the first step below the threshold, before the first null; None if none."""
        return scoring.first_error(self.scores, self.threshold)

    @property
    def verdict(self) -> str:
        """``sound``, ``flawed`` or ``unknown``."""
        return scoring.verdict(self.scores, self.threshold)

    @property
    def error_kinds(self) -> tuple[str | None, ...] | None:
        """The kind of error of each step that counts as one, None for every other step.

        Where labels mean ``local`` that is every step below the threshold, else the first error
        alone. None as a whole where the package does not name errors.
        """
        return None if self.kinds is None else self.kinds.named(self.scores, self.threshold)

    @property
    def error_kind_probabilities(self) -> tuple[Mapping[str, float] | None, ...] | None:
        """For each step that :attr:`error_kinds` names: every kind and its probability."""
        if self.kinds is None:
            return None
        named = self.kinds.named(self.scores, self.threshold)
        return tuple(
            None if kind is None or row is None
            else dict(zip(self.kinds.names, row, strict=True))
            for kind, row in zip(named, self.kinds.probabilities, strict=True)
        )  # fmt: skip

    def aggregate(self, by: str | None = None) -> float | None:
        """One number for the solution; None when a step has no score, or there are no steps.

        Raises:
            ConfigError: when the recipe does not define the aggregate ``by``.
        """
        return scoring.aggregate(
            self.scores, self.default_aggregate if by is None else by, self.aggregates
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Candidates of one problem, compared.

    ``order``: candidate indices, best first; ties keep the input order; candidates without an
    aggregate come last. ``best``: the first of them, None when no candidate has an aggregate.
    ``best_sound``: the first whose verdict is ``sound``, None when there is none.
    """

    candidates: tuple[StepScores, ...]
    order: tuple[int, ...]
    best: int | None
    best_sound: int | None
    by: str


def rank(candidates: tuple[StepScores, ...], by: str) -> Ranking:
    """Order candidates by an aggregate, best first.

    Raises:
        ConfigError: when the recipe does not define the aggregate ``by``.
    """
    values = [candidate.aggregate(by) for candidate in candidates]
    known = [index for index, value in enumerate(values) if value is not None]
    missing = [index for index, value in enumerate(values) if value is None]
    # sorted() is stable, so equal values keep the order in which they were given
    ordered = sorted(known, key=lambda i: scoring.order_key(candidates[i].scores, by, values[i]))
    ordered += missing
    sound = [index for index in ordered if candidates[index].verdict == scoring.SOUND]
    return Ranking(
        candidates=candidates,
        order=tuple(ordered),
        best=ordered[0] if known else None,
        best_sound=sound[0] if sound else None,
        by=by,
    )
