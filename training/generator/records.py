"""The records the generator makes, and the pools that keep held-out wordings apart.

A `Solution` is a problem with labelled lines. `label_meaning` is local: a line is good if
and only if it follows from the problem and the lines before it, even when one of those is
wrong. Imports `paraphrase` and the standard library only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from .paraphrase import Kept, around

T = TypeVar("T")
Split = Literal["train", "heldout"]

ERRORS = (
    "none",
    "sign",
    "one_side",
    "distribution",
    "like_terms",
    "operation",
    "slip",
    "inverted_division",
    "dropped_term",
    "misread",
    "undo",
    "jump",
)


@dataclass(frozen=True, slots=True)
class Line:
    """One step: its text, whether it follows (None: not labelled), and the error it makes."""

    text: str
    good: bool | None
    error: str = "none"
    slip: int = -1  # character from which a wrong line is wrong, -1 where that is not one place
    free: int = 0  # characters at its start that nothing before them determines


def slip_at(text: str, wrong: str, right: str) -> int:
    """Where `text`, which contains `wrong` in place of `right`, first differs; -1 if unclear."""
    start = text.rfind(wrong)
    if start < 0 or wrong == right:
        return -1
    same = next((i for i, (a, b) in enumerate(zip(wrong, right, strict=False)) if a != b), None)
    return start + (min(len(wrong), len(right)) if same is None else same)


@dataclass(frozen=True, slots=True)
class Solution:
    """A problem and its labelled lines; `template` names the family that wrote it."""

    problem: str
    lines: tuple[Line, ...]
    template: str

    @property
    def first_error(self) -> int:
        """Index of the first wrong line, -1 for none."""
        return next((i for i, line in enumerate(self.lines) if line.good is False), -1)


@dataclass(slots=True)
class Context:
    """What one draw needs: the random stream and which half of every pool it may use."""

    rng: random.Random
    split: Split = "train"
    used: list[str] = field(default_factory=list)
    level: float = 1.0  # 0: sums of small numbers only; 1: of every kind
    loose: float = 0.0  # how often a wording is put into other words; never those held out
    near: float = 0.0  # how often a wrong equation or expression is wrong by a little
    orders: float = 0.0  # how often a linear solution keeps 11-2x, and takes it to 11=1+2x

    def pick(self, pool: Sequence[T]) -> T:
        """Draw from the part of `pool` that this split owns: every fifth item is held out."""
        held = [item for i, item in enumerate(pool) if i % 5 == 4]
        rest = [item for i, item in enumerate(pool) if i % 5 != 4]
        return self.rng.choice(held if self.split == "heldout" and held else rest)

    def frame(self, pool: Sequence[str], kept: Kept | None = None) -> str:
        """Draw a wording of whose words only the phrases in `kept` decide anything.

        Now and then it is put into other words.
        """
        wording = self.pick(pool)
        if self.split == "train" and self.loose and self.chance(self.loose):
            return around(self.rng, wording, kept or {})
        return wording

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self.rng.random() < p
