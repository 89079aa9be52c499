"""Where a checkpoint still loses, family by family, on wordings it was trained on and on others.

    python -m training.families training/checkpoint

A family with a large loss in both needs more of the run; one with a large loss in held-out
wordings alone needs other words (`generator/paraphrase.py`). Mean cross-entropy of a line; lines
that are wrong and pass; lines that are right and are flagged. Part of no figure of EVAL.md.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .batches import LOOSE, NEAR, ORDERS
from .generator import Context, Solution, Split, draw
from .generator.mixture import FAMILIES, LESSONS, weights
from .scoring import Score, load

SOLUTIONS = 150
LEAST = 1e-7  # of a probability: a score of exactly 0 must not make the mean infinite


@dataclass(frozen=True, slots=True)
class Found:
    """Mean cross-entropy of the lines; share of wrong ones that pass, of right ones flagged."""

    loss: float
    passed: float
    flagged: float


def solutions(family: str, split: Split, number: int = SOLUTIONS) -> Iterator[Solution]:
    """Seeded draws of one family, those of training as training draws them."""
    rng = random.Random(f"families/{family}")
    for _ in range(number):
        if split == "train":
            context = Context(rng, split, loose=LOOSE, orders=ORDERS, near=NEAR)
        else:
            context = Context(rng, split)
        yield draw(context, family)


def measure(score: Score, family: str, split: Split, number: int = SOLUTIONS) -> Found:
    """Score the draws of a family."""
    loss, of = 0.0, {True: 0, False: 0}
    missed = {True: 0, False: 0}
    for solution in solutions(family, split, number):
        scores = score(solution.problem, [line.text for line in solution.lines])
        for line, p in zip(solution.lines, scores, strict=True):
            if line.good is None:
                continue
            loss -= math.log(max(LEAST, p if line.good else 1 - p))
            of[line.good] += 1
            missed[line.good] += (p >= 0.5) != line.good
    return Found(
        loss / max(1, sum(of.values())),
        missed[False] / max(1, of[False]),
        missed[True] / max(1, of[True]),
    )


def main() -> None:
    """Print the table of one checkpoint, on one thread."""
    torch.set_num_threads(1)
    score = load(Path(sys.argv[1]))
    names = [*FAMILIES, *LESSONS]
    shares = weights(1.0)
    print("| family | of the mixture | trained on: loss, passed, flagged | held out |")
    print("|---|---:|---:|---:|")
    for name, weight in zip(names, shares, strict=True):
        splits: list[Split] = ["train"] if name in LESSONS else ["train", "heldout"]
        cells = []
        for split in splits:
            found = measure(score, name, split)
            cells.append(f"{found.loss:.3f}, {found.passed:.0%}, {found.flagged:.0%}")
        cells += [""] * (2 - len(cells))
        print(f"| {name} | {weight / sum(shares):.0%} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
