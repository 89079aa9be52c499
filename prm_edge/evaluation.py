"""How good scores are, against what a data set knows: the figures of ``prm-edge eval``.

In: samples. Out: plain numbers. ProcessBench's protocol (arXiv 2412.06559): the predicted first
error must be the labelled one; F1 is the harmonic mean of the accuracies on erroneous and on right
solutions. PRMBench's PRM score (arXiv 2501.03124): the mean of F1 over good and over bad steps.
scikit-learn (extra ``eval``) is imported where it is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prm_edge_runtime import results, scoring
from prm_edge_runtime.errors import ConfigError

from .samples import ALL_AGGREGATES, Sample, as_result, by_problem
from .solutions import NO_ERROR

BINS: Final = 10
SEED: Final = 0
LOW_HIGH: Final = (2.5, 97.5)  # percentiles: a 95% interval
MAX_CLASSES: Final = 40
CHANCES: Final = 200  # of a curve, which is slow to draw again

Interval = tuple[float, float] | None
Figures = dict[str, Any]


def load_sklearn_metrics() -> Any:
    """scikit-learn's metrics.

    Raises:
        ConfigError: when it is not installed.
    """
    try:
        from sklearn import metrics
    except ImportError:
        raise ConfigError("evaluation needs the extra eval: pip install 'prm-edge[eval]'") from None
    return metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One sample with a known first error, and the prediction (None: no score there)."""

    sample: Sample
    label: int
    predicted: int | None

    @property
    def right(self) -> bool:
        return self.predicted == self.label


def predicted_first_error(scores: Sequence[float | None], threshold: float) -> int | None:
    """Index of the first step below the threshold, -1 for none, None when a null hides it."""
    found = scoring.first_error(scores, threshold)
    if found is not None:
        return found
    return None if any(score is None for score in scores) else NO_ERROR


def judge(
    samples: Iterable[Sample], threshold: float, *, neutral_is_good: bool = True
) -> list[Judged]:
    """Every sample whose first error is known, with what the scores predict."""
    judged = []
    for sample in samples:
        label = sample.truth.first_error(neutral_is_good=neutral_is_good)
        if label is not None:
            found = predicted_first_error(sample.scores, threshold)
            judged.append(Judged(sample=sample, label=label, predicted=found))
    return judged


def harmonic_mean(one: Any, other: Any) -> Any:
    """Of numbers or arrays; 0 where both are."""
    total = one + other
    return np.divide(2 * one * other, total, out=np.zeros_like(total * 1.0), where=total > 0)


def processbench(judged: Sequence[Judged], *, bootstrap: int = 0) -> Figures | None:
    """Accuracy on erroneous and on right solutions and their F1; None where there is no label."""
    if not judged:
        return None
    table = _counts(judged)  # (P, 4): erroneous, found; right, passed
    n_error, found, n_right, passed = (int(x) for x in table.sum(axis=0))
    labels = Counter(item.label for item in judged)
    figures: Figures = {
        "n": len(judged),
        "n_erroneous": n_error,
        "n_right": n_right,
        "accuracy_erroneous": found / n_error if n_error else None,
        "accuracy_right": passed / n_right if n_right else None,
        "f1": None,
        "accuracy": (found + passed) / len(judged),
        # the best that one answer for all can do
        "majority_label": labels.most_common(1)[0][0],
        "majority_accuracy": labels.most_common(1)[0][1] / len(judged),
        "majority_f1": 0.0,
    }
    if n_error and n_right:
        f1 = harmonic_mean(np.array(found / n_error), np.array(passed / n_right))
        figures["f1"] = float(f1)
        figures["f1_interval"] = _interval_of_counts(table, bootstrap)
    return figures


def _counts(judged: Sequence[Judged]) -> NDArray[np.int64]:
    rows: dict[str, list[int]] = {}
    for item in judged:
        row = rows.setdefault(item.sample.group, [0, 0, 0, 0])
        at = 2 if item.label == NO_ERROR else 0
        row[at] += 1
        row[at + 1] += item.right
    return np.array(list(rows.values()), dtype=np.int64)


def _weights(n_problems: int, bootstrap: int) -> NDArray[np.int64]:
    """How often each problem is drawn, each time. (B, P)"""
    chance = np.random.default_rng(SEED)
    return chance.multinomial(n_problems, np.full(n_problems, 1 / n_problems), size=bootstrap)


def _interval_of_counts(table: NDArray[np.int64], bootstrap: int) -> Interval:
    if not bootstrap or len(table) < 2:
        return None
    sums = _weights(len(table), bootstrap) @ table  # (B, P) @ (P, 4)
    kept = sums[(sums[:, 0] > 0) & (sums[:, 2] > 0)]
    if not len(kept):
        return None
    return _percentiles(harmonic_mean(kept[:, 1] / kept[:, 0], kept[:, 3] / kept[:, 2]))


def _percentiles(values: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(values, LOW_HIGH)
    return float(low), float(high)


def tune_threshold(samples: Iterable[Sample], *, neutral_is_good: bool = True) -> float | None:
    """The threshold with the best ProcessBench F1; None unless there are both kinds of solutions.

    Exact: a right solution passes for thresholds up to its smallest score, an erroneous one is
    found for thresholds in (score of the error, smallest score before it].
    """
    events: list[tuple[float, int, int]] = []  # from just above this score on: (found, passed)
    n_error = n_right = passed = 0
    for sample in samples:
        label = sample.truth.first_error(neutral_is_good=neutral_is_good)
        if label is None:
            continue
        n_right += label == NO_ERROR
        n_error += label != NO_ERROR
        known = sample.scores if label == NO_ERROR else sample.scores[: label + 1]
        if any(score is None for score in known):
            continue  # wrong at every threshold
        present = [score for score in known if score is not None]
        if label == NO_ERROR:
            passed += 1
            if present:
                events.append((min(present), 0, -1))
            continue
        *before, at = present
        if all(at < score for score in before):
            events.append((at, 1, 0))
            if before:
                events.append((min(before), -1, 0))
    if not n_error or not n_right:
        return None
    events.sort()
    return _best_cut(events, n_error, n_right, passed)


def _best_cut(
    events: Sequence[tuple[float, int, int]], n_error: int, n_right: int, passed: int
) -> float:
    scores = sorted({score for score, _, _ in events})
    best_f1, best, found, at = -1.0, 0.0, 0, 0
    for index, score in enumerate(scores):
        while at < len(events) and events[at][0] == score:
            found += events[at][1]
            passed += events[at][2]
            at += 1
        above = scores[index + 1] if index + 1 < len(scores) else score + 1e-6
        f1 = float(harmonic_mean(np.array(found / n_error), np.array(passed / n_right)))
        if f1 > best_f1:
            best_f1, best = f1, (score + above) / 2
    return best


def known_steps(
    samples: Iterable[Sample], *, neutral_is_good: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.bool_], list[str]]:
    """Score, goodness and problem of every step of which both are known."""
    scores, good, groups = [], [], []
    for sample in samples:
        truth = sample.truth.steps(len(sample.scores), neutral_is_good=neutral_is_good)
        for score, is_good in zip(sample.scores, truth, strict=False):
            if score is not None and is_good is not None:
                scores.append(score)
                good.append(is_good)
                groups.append(sample.group)
    return np.array(scores), np.array(good, dtype=bool), groups


def step_figures(
    samples: Sequence[Sample], *, neutral_is_good: bool = True, bootstrap: int = 0
) -> Figures | None:
    """AUC and calibration over steps; None where no step has a label."""
    scores, good, groups = known_steps(samples, neutral_is_good=neutral_is_good)
    if not len(scores):
        return None
    figures: Figures = {"n": len(scores), "n_good": int(good.sum()), "auc": None}
    if 0 < good.sum() < len(good):
        auc = load_sklearn_metrics().roc_auc_score
        figures["auc"] = float(auc(good, scores))
        figures["auc_interval"] = _interval_of_auc(auc, scores, good, groups, bootstrap)
    if scores.min() >= 0 and scores.max() <= 1:
        figures["reliability"] = reliability(scores, good)
        figures["ece"] = expected_calibration_error(figures["reliability"])
    return figures


def _interval_of_auc(
    auc: Callable[..., float],
    scores: NDArray[np.float64],
    good: NDArray[np.bool_],
    groups: Sequence[str],
    bootstrap: int,
) -> Interval:
    names, problem = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    if not bootstrap or len(names) < 2:
        return None
    values = []
    for drawn in _weights(len(names), min(bootstrap, CHANCES)):
        weight = drawn[problem]
        if 0 < weight[good].sum() < weight.sum():
            values.append(auc(good, scores, sample_weight=weight))
    return _percentiles(np.array(values)) if values else None


def reliability(scores: NDArray[np.float64], good: NDArray[np.bool_]) -> list[Figures]:
    """Per tenth of the scores: how many, their mean, and the share that is good."""
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    table = []
    for index in range(BINS):
        inside = bins == index
        n = int(inside.sum())
        table.append(
            {
                "from": index / BINS,
                "to": (index + 1) / BINS,
                "n": n,
                "mean_score": float(scores[inside].mean()) if n else None,
                "share_good": float(good[inside].mean()) if n else None,
            }
        )
    return table


def expected_calibration_error(table: Sequence[Mapping[str, Any]]) -> float:
    """Mean distance between score and share of good steps, weighted by the steps of each bin."""
    filled = [row for row in table if row["n"]]
    total = sum(row["n"] for row in filled)
    return float(
        sum(row["n"] * abs(row["mean_score"] - row["share_good"]) for row in filled) / total
    )


def by_class(
    samples: Sequence[Sample], threshold: float, *, neutral_is_good: bool = True
) -> list[Figures]:
    """PRMBench's table: F1 over good and over bad steps and their mean, for each class."""
    classes: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.truth.group is not None:
            classes.setdefault(sample.truth.group, []).append(sample)
    if not 2 <= len(classes) <= MAX_CLASSES:
        return []
    f1_score = load_sklearn_metrics().f1_score
    table = []
    for name, members in sorted(classes.items()):
        scores, good, _ = known_steps(members, neutral_is_good=neutral_is_good)
        if not len(scores):
            continue
        said = scores >= threshold
        f1 = float(f1_score(good, said, zero_division=0.0))
        f1_bad = float(f1_score(~good, ~said, zero_division=0.0))
        table.append(
            {"class": name, "n": len(members), "n_steps": len(scores), "f1_good": f1,
             "f1_bad": f1_bad, "prm_score": (f1 + f1_bad) / 2}
        )  # fmt: skip
    return table


def best_of_n(
    samples: Iterable[Sample],
    threshold: float,
    *,
    bootstrap: int = 0,
    aggregates: Sequence[str] = ALL_AGGREGATES,
) -> Figures | None:
    """Share of problems answered rightly by the best candidate of each aggregate.

    Beside it ``pass_at_1``, a candidate at random, and ``oracle``, the right one where there is
    one. None unless some problem has several candidates whose answers are known.
    """
    groups = [
        [sample for sample in group if sample.truth.answer is not None]
        for group in by_problem(samples).values()
    ]
    groups = [group for group in groups if group]
    if not groups or max(map(len, groups)) < 2:
        return None
    columns: dict[str, list[float]] = {"pass_at_1": [], "oracle": []}
    for group in groups:
        answers = [bool(sample.truth.answer) for sample in group]
        columns["pass_at_1"].append(sum(answers) / len(answers))
        columns["oracle"].append(float(any(answers)))
        for by in aggregates:
            ranked = results.rank(tuple(as_result(s, threshold, by) for s in group), by)
            columns.setdefault(by, []).append(
                float(ranked.best is not None and answers[ranked.best])
            )
    figures: Figures = {"problems": len(groups), "candidates": sum(map(len, groups))}
    weights = _weights(len(groups), bootstrap) if bootstrap and len(groups) > 1 else None
    for name, column in columns.items():
        values = np.array(column)
        figures[name] = float(values.mean())
        if weights is not None:
            figures[f"{name}_interval"] = _percentiles(weights @ values / len(values))
    return figures


def compare(
    samples: Sequence[Sample], others: Sequence[Sample], threshold: float, other_threshold: float
) -> Figures:
    """Which records change verdict or first error between two scorings of one file.

    Raises:
        ConfigError: when they are not of the same records.
    """
    if [s.name for s in samples] != [s.name for s in others]:
        raise ConfigError("the two scorings are not of the same records, so cannot be compared")
    changed, largest, steps = [], 0.0, 0
    for one, other in zip(samples, others, strict=True):
        first = scoring.first_error(one.scores, threshold)
        second = scoring.first_error(other.scores, other_threshold)
        verdicts = (
            scoring.verdict(one.scores, threshold),
            scoring.verdict(other.scores, other_threshold),
        )
        for a, b in zip(one.scores, other.scores, strict=False):
            if a is not None and b is not None:
                largest, steps = max(largest, abs(a - b)), steps + 1
        if first != second or verdicts[0] != verdicts[1]:
            changed.append(
                {"record": one.name, "verdict": verdicts[0], "first_error": first,
                 "other_verdict": verdicts[1], "other_first_error": second}
            )  # fmt: skip
    verdict_changes = sum(item["verdict"] != item["other_verdict"] for item in changed)
    return {
        "n": len(samples),
        "n_steps": steps,
        "max_difference": largest,
        "verdict_changed": verdict_changes,
        "first_error_changed": len(changed),
        "changed": changed,
    }


def evaluate(
    samples: Sequence[Sample], threshold: float, *, neutral_is_good: bool, bootstrap: int
) -> Figures:
    """Every figure that the labels of these samples allow."""
    judged = judge(samples, threshold, neutral_is_good=neutral_is_good)
    return {
        "solutions": len(samples),
        "threshold": threshold,
        "unscored": sum(None in sample.scores for sample in samples),
        "processbench": processbench(judged, bootstrap=bootstrap),
        "steps": step_figures(samples, neutral_is_good=neutral_is_good, bootstrap=bootstrap),
        "classes": by_class(samples, threshold, neutral_is_good=neutral_is_good),
        "best_of_n": best_of_n(samples, threshold, bootstrap=bootstrap),
    }
