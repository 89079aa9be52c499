"""The training mixture: which family writes the next solution.

In: a `Context`. Out: a `Solution`. Weights are per solution and were chosen by looking at
the interim evaluation; see ../README.md. Imports its siblings only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from . import arithmetic, equations, systems, tutor, worded
from .algebra import AlgebraError
from .records import Context, Solution, Split

Family = Callable[[Context, float], Solution]


def _tutor(context: Context, error_chance: float) -> Solution:
    del error_chance  # a tutor move is right or wrong by its own making
    return tutor.solution(context)


def _drafts(context: Context, error_chance: float) -> Solution:
    return equations.same_answer(context, [error_chance > 0])[0]


FAMILIES: dict[str, tuple[Family, float]] = {
    "linear": (equations.solution, 32),
    "draft": (_drafts, 7),
    "tutor": (_tutor, 20),
    "sentences": (worded.sentences, 22),
    "story": (worded.story, 8),
    "evaluation": (arithmetic.evaluation, 4),
    "fractions": (arithmetic.fractions, 2.5),
    "fact": (systems.fact, 2),
    "system": (systems.system, 3),
    "quadratic": (systems.quadratic, 3),
}


def draw(context: Context, family: str = "", error_chance: float | None = None) -> Solution:
    """One solution of `family`, or of one drawn by weight; errors at the rate of training."""
    rng = context.rng
    names = list(FAMILIES)
    while True:
        name = family or rng.choices(names, [w for _, w in FAMILIES.values()])[0]
        rate = error_chance if error_chance is not None else rng.choice((0.0, 0.2, 0.4, 0.5))
        try:
            out = FAMILIES[name][0](context, rate)
        except AlgebraError:
            continue
        if out.lines and all("\n" not in line.text and line.text for line in out.lines):
            return out


def stream(seed: int, split: Split = "train") -> Iterator[Solution]:
    """An endless, seeded stream of solutions."""
    context = Context(random.Random(seed), split)
    while True:
        yield draw(context)
