"""From logits to scores, from scores to one number per solution, and to a verdict.

Every function is pure numpy or standard library. Shapes: N read positions, C logits each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def _softmin(scores: Sequence[float]) -> float:
    # sum of softmax(-r/T) * r, close to the minimum (PURE, arXiv 2504.15275)
    lowest = min(scores)
    weights = [math.exp(-(score - lowest) / SOFTMIN_TEMPERATURE) for score in scores]
    weighted = math.fsum(weight * score for weight, score in zip(weights, scores, strict=True))
    return weighted / math.fsum(weights)


AGGREGATE_FUNCTIONS: Final[dict[str, Callable[[Sequence[float]], float]]] = {
    "last": _last,
    "mean": _mean,
    "min": min,
    "prod": math.prod,
    "softmin": _softmin,
}


def aggregate(scores: Sequence[float | None], by: str, allowed: Sequence[str]) -> float | None:
    """One number for a solution, or None when there are no steps or any step has no score.

    Raises:
        ConfigError: when ``by`` is not one of ``allowed``.
    """
    if by not in allowed:
        raise ConfigError(
            f"aggregate {by!r} is not defined for this recipe; use one of {', '.join(allowed)}"
        )
    present = [score for score in scores if score is not None]
    if not present or len(present) != len(scores):
        return None
    return AGGREGATE_FUNCTIONS[by](present)


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
