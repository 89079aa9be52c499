"""Figures and their intervals. Standard library only.

AUC by ranks, calibration error in ten bins, Wilson intervals for shares, and a percentile
bootstrap over groups for everything else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Chance that a good line scores above a wrong one; ties count half. NaN for one class."""
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    ranks = [0.0] * len(scores)
    i = 0
    while i < len(order):
        j = i
        while j + 1 < len(order) and scores[order[j + 1]] == scores[order[i]]:
            j += 1
        for k in range(i, j + 1):
            ranks[order[k]] = (i + j) / 2 + 1
        i = j + 1
    good = sum(labels)
    if not good or good == len(labels):
        return float("nan")
    total = sum(rank for rank, label in zip(ranks, labels, strict=True) if label)
    return (total - good * (good + 1) / 2) / (good * (len(labels) - good))


def calibration_error(scores: Sequence[float], labels: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error: mean gap between score and truth, weighted by bin size."""
    table: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for score, label in zip(scores, labels, strict=True):
        table[min(int(score * bins), bins - 1)].append((score, label))
    gaps = (abs(sum(s for s, _ in row) - sum(t for _, t in row)) for row in table if row)
    return sum(gaps) / len(scores)


def share(hits: Sequence[bool]) -> Figure:
    """Share of hits with its Wilson 95% interval."""
    n, z = len(hits), 1.96
    if not n:
        return Figure(float("nan"), 0.0, 1.0)
    p = sum(hits) / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    return Figure(p, max(0.0, centre - half), min(1.0, centre + half))


def bootstrap(
    groups: Sequence[Item], figure: Callable[[list[Item]], float], rounds: int = 300
) -> Figure:
    """Percentile bootstrap of `figure` over whole groups (problems), seeded."""
    rng = random.Random(0)
    values = sorted(figure(rng.choices(groups, k=len(groups))) for _ in range(rounds))
    values = [v for v in values if v == v]
    low, high = values[int(0.025 * len(values))], values[int(0.975 * len(values)) - 1]
    return Figure(figure(list(groups)), low, high)
