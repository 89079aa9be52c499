"""What the outputs at a read position mean: a score, and perhaps a kind of error.

In: rows of an engine. Out: scores and probabilities. Imports numpy and this package's own modules.
Shapes: N read positions, W = C logits + K outputs of the head that names errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import kinds, scoring
from .recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How one package's rows are read. ``error_kinds``: of its manifest, empty where none."""

    recipe: Recipe
    error_kinds: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """W."""
        return self.recipe.logits + len(self.error_kinds)

    def logits(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, W) -> (N, C)"""
        return rows[:, : self.recipe.logits]

    def scores(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, W) -> (N,)

        Raises:
            EngineError: as :func:`.scoring.scores_from_logits`.
        """
        return scoring.scores_from_logits(self.logits(rows), self.recipe.score)

    def redundancy(self, rows: NDArray[np.float32]) -> NDArray[np.float64] | None:
        """(N, W) -> (N,); None where the recipe does not say."""
        return scoring.redundancy_from_logits(self.logits(rows), self.recipe.score)

    def likely(self, rows: NDArray[np.float32]) -> list[tuple[float, ...]] | None:
        """Probabilities of the kinds, N tuples; None where the package names none. (N, W) ->

        Raises:
            EngineError: as :func:`.kinds.probabilities`.
        """
        if not self.error_kinds:
            return None
        found = kinds.probabilities(rows[:, self.recipe.logits :], self.error_kinds)
        return [tuple(row) for row in found.tolist()]

    def step_kinds(self, likely: Sequence[tuple[float, ...] | None]) -> kinds.StepKinds | None:
        """What a result says of its steps; None where the package names no kinds."""
        if not self.error_kinds:
            return None
        return kinds.StepKinds(
            names=kinds.known_kinds(self.error_kinds),
            probabilities=tuple(likely),
            every=kinds.judges_every_step(self.recipe.label_meaning),
        )
