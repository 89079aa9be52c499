"""Fit a threshold, a temperature and an unsure band to labelled steps, and write them down.

In: an open package, samples that its variant scored. Out: a :class:`Fit`, measured on problems that
it was not fitted to; and the package's manifest, replaced in one step. scikit-learn's scipy (extra
``eval``) is imported where it is needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prm_edge_runtime.calibration import CLOSEST, Calibration, tempered
from prm_edge_runtime.errors import ConfigError, InputError
from prm_edge_runtime.manifest import MANIFEST_NAME, Manifest
from prm_edge_runtime.package import Package

from .evaluation import (
    expected_calibration_error,
    judge,
    known_steps,
    processbench,
    reliability,
    tune_threshold,
)
from .samples import Sample

MIN_STEPS: Final = 20  # of each kind, in each half
LOG_TEMPERATURES: Final = (-3.0, 3.0)
DECIMALS: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What was fitted, and how it does on the other half: before, after."""

    threshold: float
    calibration: Calibration


def fit(
    samples: Sequence[Sample],
    *,
    before: float,
    bounds: tuple[float, float] | None,
    accuracy: float,
    neutral_is_good: bool = True,
) -> Fit:
    """Fit on half of the problems, measure on the other half.

    Args:
        before: the threshold of the package so far.
        bounds: range of the scores, None for unbounded; a temperature needs probabilities.
        accuracy: share of the steps outside the unsure band that must be judged rightly.

    Raises:
        InputError: when there are too few good or bad steps in either half.
    """
    fitted, held_out = ([sample for sample in samples if _half(sample) == half] for half in (0, 1))
    halves = [known_steps(part, neutral_is_good=neutral_is_good) for part in (fitted, held_out)]
    for _, good, _ in halves:
        fewest = min(int(good.sum()), int(len(good) - good.sum()))
        if fewest < MIN_STEPS:
            raise InputError(
                f"half of the problems have {fewest} steps of one kind; {MIN_STEPS} good and "
                f"{MIN_STEPS} bad ones are needed in each half: give more labelled solutions"
            )
    scores, good, _ = halves[0]
    threshold = tune_threshold(fitted, neutral_is_good=neutral_is_good)
    if threshold is None:  # every solution is right, or none: balanced accuracy over steps
        threshold = _balanced_threshold(scores, good)
    if bounds is not None:
        threshold = min(max(threshold, bounds[0]), bounds[1])
    threshold = round(threshold, DECIMALS)
    temperature = fit_temperature(scores, good) if bounds == (0.0, 1.0) else None
    unsure = unsure_band(scores, good, threshold, accuracy)
    facts: dict[str, Any] = {
        "steps": len(scores),
        "held_out_steps": len(halves[1][0]),
        "accuracy_asked": accuracy,
        **_measured(held_out, *halves[1][:2], before, threshold, temperature, unsure,
                    neutral_is_good),
    }  # fmt: skip
    return Fit(
        threshold=threshold,
        calibration=Calibration(temperature=temperature, unsure=unsure, fitted=facts),
    )


def _half(sample: Sample) -> int:
    # by problem, so that no problem is on both sides; by hash, so that order does not matter
    return hashlib.sha256(sample.group.encode("utf-8", "surrogatepass")).digest()[0] & 1


def _balanced_threshold(scores: NDArray[np.float64], good: NDArray[np.bool_]) -> float:
    order = np.argsort(scores, kind="stable")
    ordered, kind = scores[order], good[order]
    # below position i everything is called bad
    bad_found = np.concatenate([[0], np.cumsum(~kind)]) / (~kind).sum()
    good_lost = np.concatenate([[0], np.cumsum(kind)]) / kind.sum()
    cuts = np.concatenate([[ordered[0]], (ordered[1:] + ordered[:-1]) / 2, [ordered[-1] + 1e-6]])
    real = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])
    return float(cuts[np.argmax(np.where(real, bad_found - good_lost, -1.0))])


def fit_temperature(scores: NDArray[np.float64], good: NDArray[np.bool_]) -> float:
    """The temperature with the smallest negative log likelihood (arXiv 1706.04599).

    Raises:
        ConfigError: when scipy is not installed.
    """
    try:
        from scipy.optimize import minimize_scalar
    except ImportError:
        raise ConfigError(
            "calibration needs the extra eval: pip install 'prm-edge[eval]'"
        ) from None
    clipped = np.clip(scores, CLOSEST, 1 - CLOSEST)
    odds = np.where(good, 1.0, -1.0) * (np.log(clipped) - np.log1p(-clipped))

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -odds / np.exp(log_temperature)).mean())

    found = minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded")
    return round(float(np.exp(found.x)), DECIMALS)


def unsure_band(
    scores: NDArray[np.float64], good: NDArray[np.bool_], threshold: float, accuracy: float
) -> tuple[float, float] | None:
    """The narrowest band around the threshold outside which enough steps are judged rightly.

    Grown by the steps closest to the threshold. None when no band is needed, or none suffices.
    """
    distance = np.abs(scores - threshold)
    order = np.argsort(-distance, kind="stable")  # the surest first
    right = ((scores >= threshold) == good)[order]
    share = np.cumsum(right) / np.arange(1, len(right) + 1)
    ends = np.flatnonzero(
        np.concatenate([distance[order][1:] < distance[order][:-1], [True]])  # ties stay together
    )
    enough = ends[share[ends] >= accuracy]
    if not len(enough) or enough[-1] == len(right) - 1:
        return None
    # nothing as close to the threshold as the next step is sure
    width = float(distance[order][enough[-1] + 1])
    above = float(distance[order][enough[-1]])
    half = round((width + above) / 2, DECIMALS)
    band = (round(threshold - half, DECIMALS), round(threshold + half, DECIMALS))
    return band if half > 0 else None


def _measured(
    held_out: Sequence[Sample],
    scores: NDArray[np.float64],
    good: NDArray[np.bool_],
    before: float,
    threshold: float,
    temperature: float | None,
    unsure: tuple[float, float] | None,
    neutral_is_good: bool,
) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, value in (("before", before), ("after", threshold)):
        figures = processbench(judge(held_out, value, neutral_is_good=neutral_is_good))
        facts[f"threshold_{name}"] = value
        facts[f"f1_{name}"] = None if figures is None else figures["f1"]
        facts[f"step_accuracy_{name}"] = float(((scores >= value) == good).mean())
    if temperature is not None:
        warmed = np.array([tempered(score, temperature) for score in scores])
        facts["ece_before"] = expected_calibration_error(reliability(scores, good))
        facts["ece_after"] = expected_calibration_error(reliability(warmed, good))
    if unsure is not None:
        sure = (scores < unsure[0]) | (scores >= unsure[1])
        facts["sure_share"] = float(sure.mean())
        facts["sure_accuracy"] = (
            float(((scores >= threshold) == good)[sure].mean()) if sure.any() else None
        )
    return facts


def write_fit(package: Package, variant: str, found: Fit) -> Manifest:
    """Put a fit into the package: its manifest is replaced in one step.

    Raises:
        PackageFormatError: when the package cannot hold it.
        OSError: the package is then as it was.
    """
    manifest = dataclasses.replace(
        package.manifest,
        thresholds={**package.manifest.thresholds, variant: found.threshold},
        calibration={**package.manifest.calibration, variant: found.calibration},
    )
    raw = manifest.to_json()
    Manifest.from_json(raw)  # nobody gets a package that does not load
    target = package.root / MANIFEST_NAME
    new = target.with_name(f".{MANIFEST_NAME}.tmp-{secrets.token_hex(4)}")
    try:
        with new.open("xb") as stream:
            stream.write(raw)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(new, os.path.realpath(target))
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
    return manifest
