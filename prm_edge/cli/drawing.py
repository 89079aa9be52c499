"""Scores as bars, on any terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from prm_edge.error_words import looks_like

if TYPE_CHECKING:
    from prm_edge_runtime.recipe import Recipe

BAR_CELLS: Final = 12
PRETTY: Final = ("█", "░")
PLAIN: Final = ("#", ".")  # where the terminal cannot show the others


def bar(score: float | None, recipe: Recipe, cells: tuple[str, str]) -> str:
    """A score as a bar of ``BAR_CELLS`` characters; an empty one where there is none."""
    if score is None:
        return cells[1] * BAR_CELLS
    if recipe.score.range is None:
        share = 1 / (1 + math.exp(-max(min(score, 30.0), -30.0)))
    else:
        lowest, highest = recipe.score.range
        share = (score - lowest) / (highest - lowest)
    full = round(share * BAR_CELLS)
    return cells[0] * full + cells[1] * (BAR_CELLS - full)


def marked(index: int, first_error: int | None, kinds: Sequence[str | None] | None) -> str:
    """What stands behind a step: that it is the first error, and which kind it looks like."""
    kind = None if kinds is None else kinds[index]
    said = ["first error"] if index == first_error else []
    said += [] if kind is None else [looks_like(kind)]
    return f"   <- {', '.join(said)}" if said else ""


def cells() -> tuple[str, str]:
    """The two characters of a bar: full and empty."""
    encoding = sys.stdout.encoding or "ascii"
    try:
        "".join(PRETTY).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return PLAIN
    return PRETTY
