"""From logits to scores, from scores to one number per solution, and to a verdict.

Every function is pure numpy or standard library. Shapes: N read positions, C logits each.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, EngineError
from .recipe import Score

SOFTMIN_TEMPERATURE: Final = 0.1  # PURE's T (github.com/CJReinforce/PURE), the published default

SOUND: Final = "sound"
FLAWED: Final = "flawed"
UNKNOWN: Final = "unknown"


def scores_from_logits(logits: NDArray[np.float32], score: Score) -> NDArray[np.float64]:
    """Apply the recipe's formula in float64. (N, C) -> (N,)

    Raises:
        EngineError: when a logit is not finite; such a score would be silently wrong.
    """
    if not np.isfinite(logits).all():
        bad = int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
        raise EngineError(
            f"the model returned a logit that is not finite at read position {bad} of "
            f"{len(logits)}: the package overflows on this input or device; "
            "run the fp32 variant, and report the input"
        )
    wide = logits.astype(np.float64)
    if score.kind == "raw":
        return wide[:, 0]
    if score.kind == "sigmoid":
        return _sigmoid(wide[:, 0])
    if score.kind == "mean_sigmoid":
        mean: NDArray[np.float64] = _sigmoid(wide).sum(axis=1) / wide.shape[1]
        return mean
    probabilities = _softmax(wide)
    good: NDArray[np.float64]
    if score.kind == "classes":
        good = probabilities[:, list(score.valid)].sum(axis=1)
        return np.minimum(good, 1.0, out=good)  # whatever was rounded
    good = probabilities[:, score.good]
    if score.kind == "difference":
        good = good - probabilities[:, score.bad]
    return good


def redundancy_from_logits(logits: NDArray[np.float32], score: Score) -> NDArray[np.float64] | None:
    """How redundant each step is; None where the recipe does not say. (N, C) -> (N,)"""
    if score.redundant is None:
        return None
    found: NDArray[np.float64] = _softmax(logits.astype(np.float64))[:, score.redundant]
    return found


def _softmax(wide: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(wide - wide.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)  # (N, C)
    return probabilities


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    # exp of a non-positive number only: no overflow warning on either side
    small = np.exp(-np.abs(x))
    result: NDArray[np.float64] = np.where(x >= 0, 1.0, small) / (1.0 + small)
    return result


def _mean(scores: Sequence[float]) -> float:
    return math.fsum(scores) / len(scores)


def _last(scores: Sequence[float]) -> float:
    return scores[-1]


def _log_prod(scores: Sequence[float]) -> float:
    # no product of many probabilities rounds to another in another order, or underflows
    return -math.inf if 0.0 in scores else math.fsum(map(math.log, scores))


def _prod(scores: Sequence[float]) -> float:
    return scores[0] if len(scores) == 1 else math.exp(_log_prod(scores))


def _softmin(scores: Sequence[float], temperature: float = SOFTMIN_TEMPERATURE) -> float:
    # sum of softmax(-r/T) * r, close to the minimum (PURE, arXiv 2504.15275)
    lowest = min(scores)
    weights = [math.exp(-(score - lowest) / temperature) for score in scores]
    weighted = math.fsum(weight * score for weight, score in zip(weights, scores, strict=True))
    return weighted / math.fsum(weights)


AGGREGATE_FUNCTIONS: Final[dict[str, Callable[[Sequence[float]], float]]] = {
    "last": _last,
    "mean": _mean,
    "min": min,
    "prod": _prod,
    "softmin": _softmin,
}


def aggregate_function(by: str, allowed: Sequence[str]) -> Callable[[Sequence[float]], float]:
    """The function of an aggregate's name; ``softmin(T)`` is softmin at temperature T.

    Raises:
        ConfigError: when ``by`` is not one of ``allowed``, or T is not a positive number.
    """
    if not isinstance(by, str):
        raise ConfigError(f"an aggregate is a name such as {allowed[0]!r}, got {repr(by)[:40]}")
    name, temperature = by, None
    if match := re.fullmatch(r"softmin\((.*)\)", by):
        name, temperature = "softmin", match[1]
    if name not in allowed:
        raise ConfigError(
            f"aggregate {by!r} is not defined for this recipe; use one of {', '.join(allowed)}"
        )
    if temperature is None:
        return AGGREGATE_FUNCTIONS[name]
    try:
        number = float(temperature)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigError(
            f"the temperature of softmin must be a number above 0, as in softmin(0.1); got {by!r}"
        )
    return partial(_softmin, temperature=number)


def order_key(scores: Sequence[float | None], by: str, value: float | None) -> tuple[float, float]:
    """Sorts solutions by an aggregate, best first; ``value`` is it, None counts as 0.

    Products too small to be told apart are compared by their logarithms.
    """
    finer = 0.0
    if by == "prod" and value is not None and value < sys.float_info.min:
        finer = _log_prod([score for score in scores if score is not None])
    return -(value or 0.0), -finer


def aggregate(scores: Sequence[float | None], by: str, allowed: Sequence[str]) -> float | None:
    """One number for a solution, or None when there are no steps or any step has no score.

    Raises:
        ConfigError: as :func:`aggregate_function`.
    """
    function = aggregate_function(by, allowed)
    present = [score for score in scores if score is not None]
    if not present or len(present) != len(scores):
        return None
    return function(present)


def first_error(scores: Sequence[float | None], threshold: float) -> int | None:
    """Index of the first step below ``threshold``, looking only before the first null."""
    for index, score in enumerate(scores):
        if score is None:
            return None
        if score < threshold:
            return index
    return None


def verdict(scores: Sequence[float | None], threshold: float) -> str:
    """``flawed``, ``sound``, or ``unknown`` when there is no step or one without a score."""
    if first_error(scores, threshold) is not None:
        return FLAWED
    if not scores or any(score is None for score in scores):
        return UNKNOWN
    return SOUND
