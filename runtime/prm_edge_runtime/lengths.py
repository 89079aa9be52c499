"""What happens to a record that is longer than the model: an error, nulls, or windows.

Nothing is cut silently. In: a record and a policy. Out: the parts of it that can be run, each with
the steps whose scores it gives. Imports numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from .encoding import Encoded, RecipeEncoder
from .errors import ConfigError, InputError
from .results import SCORED, WINDOWED

ERROR: Final = "error"
NULL: Final = "null"
WINDOW: Final = "window"
POLICIES: Final = (ERROR, NULL, WINDOW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something that is run: ``record`` holds steps from ``first`` on.

    The first ``context`` of them are there to be seen only; the others get their score here, with
    ``status``.
    """

    record: Encoded
    first: int
    context: int
    status: str


def check_policy(on_too_long: object) -> str:
    """Return the policy if there is such a one.

    Raises:
        ConfigError: when there is none of that name.
    """
    if not isinstance(on_too_long, str) or on_too_long not in POLICIES:
        raise ConfigError(
            f"on_too_long must be one of {', '.join(POLICIES)}; got {repr(on_too_long)[:40]}"
        )
    return on_too_long


def fit(
    encoder: RecipeEncoder,
    problem: str,
    steps: Sequence[str],
    encoded: Encoded,
    *,
    max_tokens: int,
    causal: bool,
    on_too_long: str,
    what: str = "",
) -> list[Part]:
    """Cut a record into parts of at most ``max_tokens`` tokens.

    ``causal``: a step's score does not depend on later ones, so those that fit are as in the whole
    record. ``what`` names the record in an error.

    Raises:
        InputError: when it does not fit and the policy is ``error``.
    """
    n_steps = len(encoded.reads)
    fitting = int(np.searchsorted(encoded.reads, max_tokens))
    if fitting == n_steps:
        return [Part(record=encoded, first=0, context=0, status=SCORED)]
    if on_too_long == ERROR:
        raise InputError(
            f"{what}step {fitting} of {n_steps} (counted from 0) ends at token "
            f"{int(encoded.reads[fitting]) + 1}, beyond the {max_tokens} that this package can "
            "score; shorten the solution, or pass on_too_long='null' (--on-too-long null) for no "
            "score there, or 'window' to score the rest with the problem and fewer steps before it"
        )
    whole = []
    if causal and fitting:
        end = int(encoded.reads[fitting - 1]) + 1
        cut = Encoded(ids=encoded.ids[:end], reads=encoded.reads[:fitting])
        whole = [Part(record=cut, first=0, context=0, status=SCORED)]
    if on_too_long == NULL:
        return whole
    done = fitting if causal else 0
    return [*whole, *_windows(encoder, problem, steps, encoded, max_tokens, done)]


def _windows(
    encoder: RecipeEncoder,
    problem: str,
    steps: Sequence[str],
    encoded: Encoded,
    max_tokens: int,
    done: int,
) -> Iterator[Part]:
    """Score the steps from ``done`` on, each window with the problem and the steps just before it.

    Those fill at most half of what the problem leaves, so that every token is run about twice at
    most. A window is the record of these steps alone. A step that does not fit even alone with
    the problem is in no window.
    """
    prompt = len(encoder.encode(problem, []).ids)
    room = max_tokens - prompt
    ends = [prompt, *(int(read) + 1 for read in encoded.reads)]  # step k: ends[k] to ends[k + 1]
    at = done
    while at < len(steps):
        first = at
        while first and ends[at] - ends[first - 1] <= room // 2:
            first -= 1
        last = at + 1
        while last < len(steps) and ends[last + 1] - ends[first] <= room:
            last += 1
        record = encoder.encode(problem, steps[first:last])
        while len(record.ids) > max_tokens and last - first > 1:
            # lengths are not quite the same without what was before
            first, last = (first, last - 1) if last > at + 1 else (first + 1, last)
            record = encoder.encode(problem, steps[first:last])
        if len(record.ids) > max_tokens:
            at += 1
            continue
        yield Part(record=record, first=first, context=at - first, status=WINDOWED)
        at = last
