"""How exactly a checkpoint adds, subtracts and multiplies: sums that are wrong by a little.

    python -m training.sums training/checkpoint [CHECKPOINT ...]

Bare sums, a few to a solution, operands drawn evenly, half of the results wrong by 1, 2, 10, 20,
100 or another digit: what nobody sees who only knows how large a result must be. Part of no figure
of EVAL.md.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from .generator.corrupt import near_miss
from .scoring import Score, load

SOLUTIONS, LINES = 120, 8
Draw = Callable[[random.Random], str]
D = TypeVar("D")


def _plus_minus(largest: int) -> Draw:
    def draw(rng: random.Random) -> str:
        a, b = sorted((rng.randint(2, largest), rng.randint(2, largest)))
        return f"{a} + {b} = {a + b}" if rng.random() < 0.5 else f"{b} - {a} = {b - a}"

    return draw


def _times(rng: random.Random) -> str:
    a, b = rng.randint(2, 12), rng.randint(2, 99)
    return f"{a} * {b} = {a * b}"


KINDS: dict[str, Draw] = {
    "+ and - to 20": _plus_minus(20),
    "+ and - to 99": _plus_minus(99),
    "+ and - to 999": _plus_minus(999),
    "* to 12 by 99": _times,
}


def measure(score: Score, draw: Draw, solutions: int = SOLUTIONS) -> tuple[float, float]:
    """Share of wrong sums that pass, and of right ones that are flagged."""
    rng = random.Random(77)
    passed, flagged = [], []
    for _ in range(solutions):
        lines, good = [], []
        for _ in range(LINES):
            text = draw(rng)
            change = near_miss(rng, text.replace(" ", "")) if rng.random() < 0.5 else None
            wrong = text if change is None else f"{text.split('=')[0]}= {change[0].split('=')[1]}"
            lines.append(wrong)
            good.append(change is None)
        for fine, value in zip(good, score("Work it out.", lines), strict=True):
            (flagged if fine else passed).append((value < 0.5) == fine)
    return sum(passed) / len(passed), sum(flagged) / len(flagged)


def print_table(
    kinds: dict[str, D], measure: Callable[[Score, D], tuple[float, float]], places: int
) -> None:
    """Of the checkpoints on the command line, what passes and, in brackets, what is flagged."""
    torch.set_num_threads(1)  # the products are small: more threads wait for one another
    print("| weights |" + "".join(f" {name} |" for name in kinds))
    print("|---|" + "---:|" * len(kinds))
    for path in sys.argv[1:]:
        score = load(Path(path))
        found = [measure(score, draw) for draw in kinds.values()]
        cells = "".join(
            f" {passed:.{places}%} ({flagged:.{places}%}) |" for passed, flagged in found
        )
        print(f"| {path} |{cells}", flush=True)


if __name__ == "__main__":
    print_table(KINDS, measure, places=1)
