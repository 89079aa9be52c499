"""Kinds of error: what a flawed step looks like, and which steps are given a name.

In: the outputs of a package whose model names errors, one row for each read position. Out:
probabilities, and names for the steps that count as errors. Imports numpy and this package's own
modules. Shapes: N read positions, K outputs of the head, of which one may be :data:`NONE`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .errors import EngineError
from .scoring import first_error

# the name of an output for "no error", which some heads are trained with: never given to a step
NONE: Final = "none"
MAX_KINDS: Final = 64
MAX_NAME: Final = 64
LOCAL: Final = "local"
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def names_problem(names: Sequence[str]) -> str | None:
    """Why these cannot be the names of a head's outputs, in order; None when they can."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        return f"names {twice[0]!r} twice; every kind of error needs a name of its own"
    for name in names:
        if not name.strip() or name != name.strip() or len(name) > MAX_NAME:
            return (
                f"must hold names of 1 to {MAX_NAME} characters without spaces around them, "
                f"got {name[:80]!r}"
            )
        if _UNPRINTABLE.search(name):
            return f"must not hold control characters, got {name!r}"
    if len(names) > MAX_KINDS:
        return f"must hold at most {MAX_KINDS} names, got {len(names)}"
    if len(known_kinds(names)) < 2:
        return (
            f"must name at least two kinds of error besides {NONE!r}, got "
            f"{', '.join(names) or 'nothing'}"
        )
    return None


def known_kinds(names: Sequence[str]) -> tuple[str, ...]:
    """The names that a step can be given, in order."""
    return tuple(name for name in names if name != NONE)


def probabilities(outputs: NDArray[np.float32], names: Sequence[str]) -> NDArray[np.float64]:
    """Softmax over the kinds that a step can be given, in float64. (N, K) -> (N, kinds)

    Which kind it is if it is an error; whether it is one, the score says. So :data:`NONE` is left
    out.

    Raises:
        EngineError: when an output is not finite; such a name would be silently wrong.
    """
    if not np.isfinite(outputs).all():
        raise EngineError(
            "the model returned a number for a kind of error that is not finite: the package "
            "overflows on this input or device; run the fp32 variant, and report the input"
        )
    kept = [index for index, name in enumerate(names) if name != NONE]
    wide = outputs[:, kept].astype(np.float64)
    shifted = np.exp(wide - wide.max(axis=1, keepdims=True))
    found: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class StepKinds:
    """Which kind of error each step would be, if it is one.

    ``names``: of the kinds. ``probabilities``: of each step one number per name, which add up to
    1; None where it has no score. ``every``: see :func:`judges_every_step`.
    """

    names: tuple[str, ...]
    probabilities: tuple[tuple[float, ...] | None, ...]
    every: bool

    def named(self, scores: Sequence[float | None], threshold: float) -> tuple[str | None, ...]:
        """The likeliest kind of each step that counts as an error; None for every other step.

        That is every step below the threshold where each is judged on its own, else the first one
        alone. Of kinds that are equally likely the first is taken.
        """
        first = first_error(scores, threshold)
        return tuple(
            self.names[max(range(len(row)), key=row.__getitem__)]
            if row is not None
            and score is not None
            and score < threshold
            and (self.every or index == first)
            else None
            for index, (score, row) in enumerate(zip(scores, self.probabilities, strict=True))
        )


def judges_every_step(label_meaning: str) -> bool:
    """Whether a low score after the first error says that this step is wrong too.

    So it is where labels are ``local``: each line is held against those before it. Where they mean
    ``on_path`` a later step is low because the path was left before, and ``until_first_error``
    says nothing of later steps: there only the first error has a kind.
    """
    return label_meaning == LOCAL
