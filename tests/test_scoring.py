"""Formulas against references written another way: exact fractions, mpmath-free, or torch."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prm_edge_runtime.errors import ConfigError, EngineError
from prm_edge_runtime.recipe import AGGREGATES, SCORE_KINDS, Score
from prm_edge_runtime.scoring import (
    AGGREGATE_FUNCTIONS,
    FLAWED,
    SOFTMIN_TEMPERATURE,
    SOUND,
    UNKNOWN,
    aggregate,
    first_error,
    redundancy_from_logits,
    scores_from_logits,
    verdict,
)

LOGIT = st.floats(-1e4, 1e4, width=32)
UNIT = st.floats(0.0, 1.0)
MAYBE = st.one_of(st.none(), UNIT)
EVERY = tuple(AGGREGATES)


def rows(*values: list[float]) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def other_softmax(row: list[float], index: int) -> float:
    """1 / sum(exp(x_j - x_i)): no maximum, no division by a sum of probabilities."""
    total = 0.0
    for value in row:
        gap = float(np.float32(value)) - float(np.float32(row[index]))
        total += math.exp(gap) if gap < 700 else math.inf
    return 1.0 / total


@given(st.lists(st.lists(LOGIT, min_size=3, max_size=3), min_size=1, max_size=5), st.integers(0, 2))
@settings(max_examples=50, deadline=None)
def test_softmax_equals_another_way(logits: list[list[float]], good: int) -> None:
    got = scores_from_logits(rows(*logits), Score(kind="softmax", good=good))
    expected = [other_softmax(row, good) for row in logits]
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-300)
    assert ((got >= 0) & (got <= 1)).all()


@given(st.lists(LOGIT, min_size=3, max_size=3))
@settings(max_examples=50, deadline=None)
def test_difference_equals_another_way(row: list[float]) -> None:
    (got,) = scores_from_logits(rows(row), Score(kind="difference", good=2, bad=0))
    assert got == pytest.approx(other_softmax(row, 2) - other_softmax(row, 0), abs=1e-12)
    assert -1 <= got <= 1


@given(LOGIT)
@settings(max_examples=50, deadline=None)
def test_sigmoid_equals_another_way(logit: float) -> None:
    (got,) = scores_from_logits(rows([logit]), Score(kind="sigmoid"))
    assert got == pytest.approx(0.5 * (1 + math.tanh(logit / 2)), abs=1e-15, rel=1e-12)
    assert got == pytest.approx(other_softmax([logit, 0.0], 0), rel=1e-12, abs=1e-300)


@given(st.lists(LOGIT, min_size=3, max_size=3))
@settings(max_examples=50, deadline=None)
def test_classes_equal_another_way(row: list[float]) -> None:
    # ReasonEval's, for one: the rest of the classes is what is left
    score = Score(kind="classes", valid=(1, 2), redundant=1)
    (got,) = scores_from_logits(rows(row), score)
    assert got == pytest.approx(1 - other_softmax(row, 0), abs=1e-12)
    assert 0 <= got <= 1
    redundancy = redundancy_from_logits(rows(row), score)
    assert redundancy is not None
    assert redundancy[0] == pytest.approx(other_softmax(row, 1), rel=1e-12, abs=1e-300)


@given(st.lists(LOGIT, min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_mean_sigmoid_equals_another_way(row: list[float]) -> None:
    (got,) = scores_from_logits(rows(row), Score(kind="mean_sigmoid"))
    parts = [Fraction(0.5 * (1 + math.tanh(logit / 2))) for logit in row]
    assert got == pytest.approx(float(sum(parts) / len(parts)), abs=1e-15, rel=1e-12)
    assert 0 <= got <= 1


def test_redundancy_only_where_the_recipe_says() -> None:
    assert redundancy_from_logits(rows([0.0, 0.0]), Score(kind="softmax", good=1)) is None
    assert redundancy_from_logits(rows([0.0, 0.0]), Score(kind="classes", valid=(1,))) is None


@given(LOGIT)
@settings(max_examples=20, deadline=None)
def test_raw_is_the_logit(logit: float) -> None:
    assert scores_from_logits(rows([logit]), Score(kind="raw")).tolist() == [logit]


def test_scores_equal_torch() -> None:
    torch = pytest.importorskip("torch", reason="compares with torch where it is installed")
    logits = np.random.default_rng(0).normal(0, 8, (200, 4)).astype(np.float32)
    wide = torch.tensor(logits).double()
    got = scores_from_logits(logits, Score(kind="softmax", good=3))
    np.testing.assert_allclose(got, torch.softmax(wide, -1)[:, 3].numpy(), rtol=1e-13)
    got = scores_from_logits(logits[:, :1], Score(kind="sigmoid"))
    np.testing.assert_allclose(got, torch.sigmoid(wide[:, 0]).numpy(), rtol=1e-13)


@pytest.mark.parametrize("kind", SCORE_KINDS)
@pytest.mark.parametrize("size", [1e4, 3e38])
def test_scores_extreme_logits_are_exact_and_silent(kind: str, size: float) -> None:
    needs = SCORE_KINDS[kind][0] or 2
    logits = rows([size, -size][:needs], [-size, size][:needs])
    low = {"difference": -1.0, "raw": -float(np.float32(size)), "mean_sigmoid": 0.5}.get(kind, 0.0)
    high = {"raw": float(np.float32(size)), "mean_sigmoid": 0.5}.get(kind, 1.0)
    with warnings.catch_warnings(), np.errstate(over="raise", invalid="raise", divide="raise"):
        warnings.simplefilter("error")
        got = scores_from_logits(logits, Score(kind=kind, good=0, bad=1, valid=(0,)))
    assert got.tolist() == [high, low]
    assert got.dtype == np.float64


@pytest.mark.parametrize("kind", SCORE_KINDS)
def test_scores_of_no_steps(kind: str) -> None:
    empty = np.zeros((0, SCORE_KINDS[kind][0] or 2), dtype=np.float32)
    assert scores_from_logits(empty, Score(kind=kind)).shape == (0,)


@pytest.mark.parametrize("kind", SCORE_KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_refuse_what_is_not_finite(kind: str, bad: float) -> None:
    logits = np.zeros((3, SCORE_KINDS[kind][0] or 2), dtype=np.float32)
    logits[1, -1] = bad
    with pytest.raises(EngineError, match=r"not finite at read position 1 of 3.*fp32 variant"):
        scores_from_logits(logits, Score(kind=kind))


def test_scores_do_not_change_the_logits() -> None:
    logits = rows([1.0, 2.0])
    scores_from_logits(logits, Score(kind="softmax"))[:] = 7
    scores_from_logits(logits[:, :1], Score(kind="raw"))[:] = 7
    assert logits.tolist() == [[1.0, 2.0]]


@given(st.lists(st.lists(LOGIT, min_size=2, max_size=2), min_size=1, max_size=9))
@settings(max_examples=30, deadline=None)
def test_scores_of_a_row_do_not_depend_on_the_others(logits: list[list[float]]) -> None:
    score = Score(kind="softmax", good=1)
    whole = scores_from_logits(rows(*logits), score)
    alone = [scores_from_logits(rows(row), score)[0] for row in logits]
    assert whole.tolist() == alone


# --- aggregates


def exact(scores: list[float], by: str) -> float:
    """The definitions, in exact fractions where they are rational."""
    parts = [Fraction(score) for score in scores]
    if by == "last":
        return float(parts[-1])
    if by == "mean":
        return float(sum(parts) / len(parts))
    if by == "min":
        return float(min(parts))
    if by == "prod":
        return float(math.prod(parts))
    weights = np.exp(-np.array(scores, dtype=np.longdouble) / SOFTMIN_TEMPERATURE)
    return float((weights * np.array(scores, dtype=np.longdouble)).sum() / weights.sum())


def test_aggregates_are_exactly_those_of_the_recipes() -> None:
    assert set(AGGREGATE_FUNCTIONS) == set(AGGREGATES)


@pytest.mark.parametrize("by", EVERY)
@given(scores=st.lists(UNIT, min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_aggregate_equals_its_definition(by: str, scores: list[float]) -> None:
    got = aggregate(scores, by, EVERY)
    assert got == pytest.approx(exact(scores, by), rel=1e-11, abs=1e-300)


@pytest.mark.parametrize("by", ["last", "mean", "min", "softmin"])
@given(scores=st.lists(st.floats(-50, 50), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_aggregate_of_unbounded_scores(by: str, scores: list[float]) -> None:
    got = aggregate(scores, by, EVERY)
    assert got is not None
    if by != "softmin" or max(map(abs, scores)) < 10:  # beyond, the plain formula overflows
        assert got == pytest.approx(exact(scores, by), rel=1e-9, abs=1e-9)
    slack = 1e-9 * max(1.0, *map(abs, scores))
    assert min(scores) - slack <= got <= max(scores) + slack


@pytest.mark.parametrize("by", EVERY)
@given(score=UNIT)
@settings(max_examples=20, deadline=None)
def test_aggregate_of_one_step_is_its_score(by: str, score: float) -> None:
    assert aggregate([score], by, EVERY) == pytest.approx(score, rel=1e-12, abs=1e-300)


@given(st.lists(UNIT, min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_aggregates_keep_their_order(scores: list[float]) -> None:
    values = [aggregate(scores, by, EVERY) or 0.0 for by in ("prod", "min", "softmin", "mean")]
    for smaller, larger in pairwise(values):
        assert smaller <= larger * (1 + 1e-12) + 1e-12


def test_prod_of_thousands_of_steps() -> None:
    got = aggregate([0.999] * 5000, "prod", EVERY)
    assert got == pytest.approx(float(Fraction(0.999) ** 5000), rel=1e-11)
    assert aggregate([1.0] * 100_000, "prod", EVERY) == 1.0
    tiny = aggregate([0.01] * 150, "prod", EVERY)
    assert tiny == pytest.approx(1e-300, rel=1e-9)
    assert aggregate([0.01] * 5000, "prod", EVERY) == 0.0  # below every float: no error


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_prod_with_a_zero_is_zero(zero: float) -> None:
    assert aggregate([0.9, zero, 0.9], "prod", EVERY) == 0.0


@given(UNIT)
@settings(max_examples=50, deadline=None)
def test_prod_of_one_step_is_that_score_to_the_bit(score: float) -> None:
    assert aggregate([score], "prod", EVERY) == score


def test_softmin_is_the_published_formula() -> None:
    scores = [0.9, 0.2, 0.7]
    top = sum(math.exp(-s / 0.1) * s for s in scores)
    bottom = sum(math.exp(-s / 0.1) for s in scores)
    assert aggregate(scores, "softmin", EVERY) == pytest.approx(top / bottom, rel=1e-14)


def test_softmin_of_far_scores_neither_overflows_nor_divides_by_zero() -> None:
    assert aggregate([-1e4, 1e4], "softmin", EVERY) == -1e4
    assert aggregate([1e4, 1e4], "softmin", EVERY) == 1e4


@pytest.mark.parametrize("by", EVERY)
@pytest.mark.parametrize("scores", [[], [None], [0.5, None], [None, 0.5]])
def test_aggregate_with_a_gap_is_none(by: str, scores: list[float | None]) -> None:
    assert aggregate(scores, by, EVERY) is None


@pytest.mark.parametrize("scores", [[], [0.5], [None]])
def test_aggregate_not_defined_for_the_recipe(scores: Any) -> None:
    with pytest.raises(ConfigError, match="'prod' is not defined for this recipe; use one of min"):
        aggregate(scores, "prod", ("min", "mean"))


@given(scores=st.lists(UNIT, min_size=1, max_size=9), temperature=st.floats(0.02, 50))
@settings(max_examples=50, deadline=None)
def test_softmin_at_another_temperature(scores: list[float], temperature: float) -> None:
    wide = np.array(scores, dtype=np.longdouble)
    weights = np.exp(-wide / np.longdouble(temperature))
    got = aggregate(scores, f"softmin({temperature!r})", ("mean", "softmin"))
    assert got == pytest.approx(float((weights * wide).sum() / weights.sum()), rel=1e-9, abs=1e-300)


def test_softmin_without_a_temperature_is_the_published_one() -> None:
    scores = [0.9, 0.3, 0.5]
    assert aggregate(scores, "softmin(0.1)", EVERY) == aggregate(scores, "softmin", EVERY)
    assert aggregate(scores, "softmin(1e-9)", EVERY) == 0.3


@pytest.mark.parametrize("inner", ["", "0", "-1", "nan", "inf", "x", "0.1)("])
def test_softmin_at_an_impossible_temperature(inner: str) -> None:
    with pytest.raises(ConfigError, match="temperature of softmin must be a number above 0, as in"):
        aggregate([0.5], f"softmin({inner})", EVERY)


def test_softmin_with_a_temperature_is_restricted_too() -> None:
    with pytest.raises(ConfigError, match=r"'softmin\(0.1\)' is not defined for this recipe"):
        aggregate([0.5], "softmin(0.1)", ("min", "mean"))
    with pytest.raises(ConfigError, match=r"an aggregate is a name such as 'last', got 5"):
        aggregate([0.5], 5, EVERY)  # type: ignore[arg-type]


@given(scores=st.lists(st.sampled_from([0.1, 0.3, 0.7, 0.9, 1.0]), max_size=9), data=st.data())
@settings(max_examples=50, deadline=None)
def test_prod_does_not_depend_on_the_order(scores: list[float], data: st.DataObject) -> None:
    turned = data.draw(st.permutations(scores))
    assert aggregate(turned, "prod", EVERY) == aggregate(scores, "prod", EVERY)


# --- first error and verdict


@pytest.mark.parametrize(
    ("scores", "error", "said"),
    [
        ([], None, UNKNOWN),
        ([0.9], None, SOUND),
        ([0.5], None, SOUND),  # the threshold itself is no error
        ([0.49999], 0, FLAWED),
        ([0.9, 0.1, 0.0], 1, FLAWED),
        ([0.9, None], None, UNKNOWN),
        ([None, 0.1], None, UNKNOWN),  # nothing is said about what follows a gap
        ([0.1, None], 0, FLAWED),
        ([0.9, None, 0.1], None, UNKNOWN),
        ([None], None, UNKNOWN),
        ([0.0], 0, FLAWED),
    ],
)
def test_first_error_and_verdict(scores: list[float | None], error: int | None, said: str) -> None:
    assert first_error(scores, 0.5) == error
    assert verdict(scores, 0.5) == said


@given(st.lists(MAYBE, max_size=12), UNIT)
@settings(max_examples=50, deadline=None)
def test_verdict_follows_from_its_definition(scores: list[float | None], threshold: float) -> None:
    known = scores[: scores.index(None)] if None in scores else scores
    below = [i for i, score in enumerate(known) if score is not None and score < threshold]
    assert first_error(scores, threshold) == (below[0] if below else None)
    expected = FLAWED if below else UNKNOWN if None in scores or not scores else SOUND
    assert verdict(scores, threshold) == expected
    assert first_error(scores, threshold) != -1
