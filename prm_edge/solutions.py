"""What a line of input holds once it is understood: problems, solutions, and what is known of them.

In: decoded JSON values. Out: frozen records, or an
:class:`~prm_edge_runtime.errors.InputError` that says what is wrong. Imports nothing but the
standard library and the runtime.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from prm_edge_runtime.encoding import check_text
from prm_edge_runtime.errors import InputError, InputTypeError

Id = str | int | float | bool | None

GOOD: Final = 1
NEUTRAL: Final = 0
BAD: Final = -1
NO_ERROR: Final = -1  # a label of ProcessBench: no step is wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A problem and the steps of one solution."""

    id: Id
    problem: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A problem and a raw response, which the recipe cuts into steps."""

    id: Id
    problem: str
    response: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """A problem and the steps of several solutions, to be compared."""

    id: Id
    problem: str
    candidates: tuple[tuple[str, ...], ...]


Record = Solution | Response | Candidates


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What a data set says of one solution; None where it says nothing.

    ``label``: index of the first wrong step, -1 when no step is wrong. ``ratings``: 1 good,
    0 neutral, -1 bad or None, one per step. ``answer``: whether the final answer is right.
    ``group``: the class of error or the source, as the data set names it.
    """

    label: int | None = None
    ratings: tuple[int | None, ...] | None = None
    answer: bool | None = None
    group: str | None = None

    def first_error(self, *, neutral_is_good: bool = True) -> int | None:
        """Index of the first wrong step, -1 when none is, None when the data set does not say.

        Ratings of every step decide where they exist; else ``label`` does.
        """
        if self.ratings is None:
            return self.label
        for index, rating in enumerate(self.ratings):
            if rating is None:
                return None
            if rating == BAD or (rating == NEUTRAL and not neutral_is_good):
                return index
        return NO_ERROR

    def steps(self, n_steps: int, *, neutral_is_good: bool = True) -> tuple[bool | None, ...]:
        """Whether each step is good; None for a step of which nothing is known.

        With a ``label`` alone, steps after the first wrong one are unknown.
        """
        if self.ratings is not None:
            bad = {BAD} if neutral_is_good else {BAD, NEUTRAL}
            return tuple(None if rating is None else rating not in bad for rating in self.ratings)
        if self.label is None:
            return (None,) * n_steps
        if self.label == NO_ERROR:
            return (True,) * n_steps
        return (*(True,) * self.label, False, *(None,) * (n_steps - self.label - 1))


UNKNOWN: Final = Truth()


def read_id(data: dict[str, Any], key: str = "id") -> Id:
    """Return the id of a record, None when it has none.

    Raises:
        InputTypeError: when it is a list or an object.
        InputError: when it is a number too large for JSON readers.
    """
    value = data.get(key)
    if isinstance(value, list | dict):
        raise InputTypeError(f"{key} must be a string or a number, got {kind(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{key} is a number too large to be written back; use a string")
    checked: Id = value
    return checked


def strings(value: object, what: str, advice: str = "") -> tuple[str, ...]:
    """Check a list of strings; ``advice`` ends the message when it is no list.

    Raises:
        InputTypeError: when it is no list, or holds something else.
        InputError: for text that cannot be encoded.
    """
    if not isinstance(value, list):
        raise InputTypeError(f"{what} must be a list of strings, got {kind(value)}{advice}")
    return tuple(check_text(item, f"{what}[{index}]") for index, item in enumerate(value))


def objects(value: object, what: str) -> list[dict[str, Any]]:
    """Check a list of objects.

    Raises:
        InputTypeError: when it is no list, or holds something else.
    """
    if not isinstance(value, list):
        raise InputTypeError(f"{what} must be a list of objects, got {kind(value)}")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise InputTypeError(f"{what}[{index}] must be an object, got {kind(item)}")
    return value


def an_object(value: object, what: str) -> dict[str, Any]:
    """Check an object.

    Raises:
        InputTypeError: when it is none.
    """
    if not isinstance(value, dict):
        raise InputTypeError(f"{what} must be an object, got {kind(value)}")
    return value


def an_index(value: object, what: str, *, lowest: int, end: int) -> int:
    """Check an integer from ``lowest`` to before ``end``.

    Raises:
        InputTypeError: when it is no integer.
        InputError: when it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputTypeError(f"{what} must be an integer, got {kind(value)}")
    if not lowest <= value < end:
        raise InputError(f"{what} must be from {lowest} to {end - 1}, got {str(value)[:40]}")
    return value


def a_rating(value: object, what: str) -> int | None:
    """Check a rating of one step: 1, 0, -1, true, false or null.

    Raises:
        InputError: for anything else.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return GOOD if value else BAD
    if isinstance(value, int | float) and value in (GOOD, NEUTRAL, BAD):
        return int(value)
    shown = str(value)[:40] if isinstance(value, int | float) else kind(value)
    raise InputError(f"{what} must be 1, 0, -1, true, false or null, got {shown}")


def kind(value: object) -> str:
    """What JSON calls the type of a decoded value."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")
