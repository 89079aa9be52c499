"""The training mixture: which family writes the next solution.

In: a `Context`. Out: a `Solution`. Weights are per solution. Digits first, since every other
family needs them: during the first half of a run from nothing they move from `EARLY`, mostly bare
sums, to those of `FAMILIES`; a run from finished weights may begin with drills alone, of sums and
of moves. Imports its siblings only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Literal

from . import arithmetic, equations, facts, percent, systems, tales, tutor, worded
from .algebra import AlgebraError
from .records import Context, Solution, Split

Family = Callable[[Context, float], Solution]


def _tutor(context: Context, error_chance: float) -> Solution:
    del error_chance  # a tutor move is right or wrong by its own making
    return tutor.solution(context)


def _drafts(context: Context, error_chance: float) -> Solution:
    return equations.same_answer(context, [error_chance > 0])[0]


FAMILIES: dict[str, tuple[Family, float]] = {
    "linear": (equations.solution, 44),
    "draft": (_drafts, 40),
    "tutor": (_tutor, 20),
    "sentences": (worded.sentences, 10),
    "story": (worded.story, 9),
    "evaluation": (arithmetic.evaluation, 20),
    "fractions": (arithmetic.fractions, 4),
    "fact": (facts.fact, 14),
    "system": (systems.system, 20),
    "quadratic": (systems.quadratic, 4),
}
# Trained on and never measured: sums and bare equations, the densest lessons in digits there are,
# and what the measured stories hardly have.
LESSONS: dict[str, tuple[Family, float]] = {
    "sums": (worded.sums, 6),
    "drills": (worded.drills, 10),
    "moves": (equations.drills, 56),
    "percent": (percent.solution, 16),
    "tales": (tales.solution, 8),
}
EARLY = {
    "sums": 25,
    "drills": 60,
    "moves": 8,
    "percent": 2,
    "tales": 2,
    "linear": 16,
    "draft": 3,
    "tutor": 12,
    "sentences": 12,
    "story": 4,
    "evaluation": 3,
    "fractions": 2,
    "fact": 1,
    "system": 1,
    "quadratic": 1,
}
# Moves above all: the sums alone are known after some runs, not yet where in a line they are asked.
DRILLS = {"drills": 40, "moves": 120}
_WRITERS = FAMILIES | LESSONS
# As the layer that names errors is fitted: half of the errors of drafts are undone ones, which
# are rare elsewhere, and with all the drafts that a run is given slips are called undone.
NAMED = dict.fromkeys(LESSONS, 0.0) | {"draft": 18.0}
# How a run begins: with sums of small numbers, with `DRILLS`, or with the final mixture. Or
# the one that the layer that names errors is fitted on.
Start = Literal["small", "drills", "mixed", "whole"]


def weights(share: float, start: Start = "mixed") -> list[float]:
    """Weight of each writer after `share` of a run that began in some way."""
    if start == "whole":
        return [NAMED.get(name, w) for name, (_, w) in _WRITERS.items()]
    if start == "mixed":
        late, early = 1.0, EARLY
    elif start == "small":
        late, early = min(1.0, 2 * share), EARLY
    else:
        late, early = min(1.0, max(0.0, (share - 0.4) / 0.2)), DRILLS
    return [late * w + (1 - late) * early.get(name, 0) for name, (_, w) in _WRITERS.items()]


def draw(
    context: Context,
    family: str = "",
    error_chance: float | None = None,
    share: float = 1.0,
    start: Start = "mixed",
) -> Solution:
    """One solution of `family`, or of one drawn by weight; errors at the rate of training."""
    rng = context.rng
    names, chances = list(_WRITERS), weights(share, start)
    while True:
        name = family or rng.choices(names, chances)[0]
        rate = error_chance if error_chance is not None else rng.choice((0.0, 0.2, 0.4, 0.5))
        try:
            out = _WRITERS[name][0](context, rate)
        except AlgebraError:
            continue
        if out.lines and all("\n" not in line.text and line.text for line in out.lines):
            return out


def stream(seed: int, split: Split = "train") -> Iterator[Solution]:
    """An endless, seeded stream of solutions."""
    context = Context(random.Random(seed), split)
    while True:
        yield draw(context)
