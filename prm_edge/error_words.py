"""Kinds of error as people say them: the one table, for the command line and for pages.

A package names kinds as it likes; the ones known here are those of the built-in model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

# name -> what follows "looks like"
WORDS: Final = {
    "sign": "a lost or flipped sign",
    "one_side": "a change on one side only",
    "distribution": "a bracket multiplied out in part",
    "like_terms": "unlike terms put together",
    "operation": "the wrong operation",
    "slip": "a slip in the sum",
    "inverted_division": "a division the wrong way round",
    "dropped_term": "a lost term",
    "misread": "a misread number",
    "undo": "an earlier error undone",
    "jump": "a result that the working does not give",
}


def in_words(kind: str) -> str:
    """A kind of error, to follow "looks like"; an unknown name as it is, its underscores blank."""
    return WORDS.get(kind) or kind.replace("_", " ")


def looks_like(kind: str) -> str:
    """``looks like a lost or flipped sign``."""
    return f"looks like {in_words(kind)}"


def all_in_words(kinds: Iterable[str]) -> dict[str, str]:
    """Name -> words, for pages that say them themselves."""
    return {kind: in_words(kind) for kind in kinds}
