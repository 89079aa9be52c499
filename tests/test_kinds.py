"""Kinds of error: their names, their probabilities, and which steps are given one."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_edge_runtime.errors import EngineError
from prm_edge_runtime.kinds import (
    MAX_KINDS,
    MAX_NAME,
    StepKinds,
    judges_every_step,
    known_kinds,
    names_problem,
    probabilities,
)
from prm_edge_runtime.recipe import LABEL_MEANINGS
from prm_edge_runtime.results import SCORED, TOO_LONG, StepScores

NAMES = ("none", "sign", "slip")
SURE = {"sign": (0.9, 0.1), "slip": (0.2, 0.8), None: None}


def rows(*kinds: str | None) -> tuple[tuple[float, ...] | None, ...]:
    return tuple(SURE[kind] for kind in kinds)


def step_kinds(*kinds: str | None, every: bool = True) -> StepKinds:
    return StepKinds(names=("sign", "slip"), probabilities=rows(*kinds), every=every)


def result(*scores: float | None, kinds: StepKinds | None, threshold: float = 0.5) -> StepScores:
    return StepScores(
        scores=scores,
        status=tuple(TOO_LONG if score is None else SCORED for score in scores),
        threshold=threshold,
        n_tokens=7,
        n_tokens_run=7,
        aggregates=("min",),
        default_aggregate="min",
        logits=(None,) * len(scores),
        kinds=kinds,
    )


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("none", "sign", "slip"), None),
        (("sign", "slip"), None),
        (("Vorzeichen ±", "one side"), None),
        (tuple(f"k{n}" for n in range(MAX_KINDS)), None),
        (("a", "b" * MAX_NAME), None),
        ((), "must name at least two kinds of error besides 'none', got nothing"),
        (("sign",), "at least two kinds of error besides 'none', got sign"),
        (("none", "sign"), "at least two kinds of error besides 'none', got none, sign"),
        (("sign", "slip", "sign"), "names 'sign' twice"),
        (("", "slip"), "names of 1 to 64 characters"),
        (("a", " "), "without spaces around them, got ' '"),
        (("a", "b "), "without spaces around them, got 'b '"),
        (("a", "b" * (MAX_NAME + 1)), "names of 1 to 64 characters"),
        (("a", "b\x1b[2J"), "must not hold control characters"),
        (("a", "b\x85c"), "must not hold control characters"),
        (tuple(f"k{n}" for n in range(MAX_KINDS + 1)), "at most 64 names, got 65"),
    ],
)
def test_names_problem(names: tuple[str, ...], problem: str | None) -> None:
    found = names_problem(names)
    assert found is None if problem is None else problem in str(found)


def test_known_kinds_leave_none_out() -> None:
    assert known_kinds(NAMES) == known_kinds(("sign", "none", "slip")) == ("sign", "slip")
    assert known_kinds(()) == ()


@given(st.lists(st.tuples(*[st.floats(-80, 80, width=32)] * 3), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_probabilities_are_a_softmax_without_none(given_rows: list[tuple[float, ...]]) -> None:
    for at, names in enumerate([NAMES, ("sign", "none", "slip"), ("sign", "slip", "none")]):
        found = probabilities(np.array(given_rows, dtype=np.float32), names)
        for row, outputs in zip(found.tolist(), given_rows, strict=True):
            kept = [x for index, x in enumerate(outputs) if index != at]
            share = 1 / (1 + math.exp(min(700.0, kept[1] - kept[0])))
            assert row == pytest.approx([share, 1 - share], abs=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_probabilities_refuse_what_is_not_finite(bad: float) -> None:
    # also in the column that is left out: the model has overflown
    outputs = np.array([[0, 1, 2], [bad, 0, 1]], dtype=np.float32)
    with pytest.raises(EngineError, match="a kind of error that is not finite: the package over"):
        probabilities(outputs, NAMES)


def test_every_step_is_judged_where_labels_are_local_alone() -> None:
    assert [judges_every_step(meaning) for meaning in LABEL_MEANINGS] == [True, False, False]


def test_named_are_the_steps_below_the_threshold() -> None:
    kinds = step_kinds("slip", "sign", "slip", None, "sign")
    scores = (0.5, 0.1, 0.49999, None, 0.9)
    assert kinds.named(scores, 0.5) == (None, "sign", "slip", None, None)
    assert kinds.named(scores, 0.95) == ("slip", "sign", "slip", None, "sign")
    assert kinds.named(scores, 0.0) == (None,) * 5


def test_named_is_the_first_error_alone_where_later_scores_say_nothing() -> None:
    kinds = step_kinds("slip", "sign", "slip", every=False)
    assert kinds.named((0.9, 0.1, 0.2), 0.5) == (None, "sign", None)
    # a step without a score before it: nobody knows which is the first
    unknown = step_kinds("slip", None, "sign", every=False)
    assert unknown.named((0.9, None, 0.2), 0.5) == (None, None, None)
    assert step_kinds("slip", None, "sign").named((0.9, None, 0.2), 0.5) == (None, None, "sign")


def test_named_takes_the_first_of_equals() -> None:
    kinds = StepKinds(names=("sign", "slip"), probabilities=((0.5, 0.5),), every=True)
    assert kinds.named((0.1,), 0.5) == ("sign",)


def test_step_scores_name_kinds_by_their_own_threshold() -> None:
    scored = result(0.3, 0.6, kinds=step_kinds("sign", "slip"))
    assert scored.error_kinds == ("sign", None)
    assert dataclasses.replace(scored, threshold=0.2).error_kinds == (None, None)
    assert dataclasses.replace(scored, threshold=0.7).error_kinds == ("sign", "slip")
    assert scored.error_kind_probabilities == ({"sign": 0.9, "slip": 0.1}, None)
    assert result(0.3, None, kinds=step_kinds("sign", None)).error_kinds == ("sign", None)


def test_step_scores_without_kinds_say_nothing_of_them() -> None:
    scored = result(0.3, 0.6, kinds=None)
    assert scored.error_kinds is None
    assert scored.error_kind_probabilities is None
    assert "kinds" not in repr(scored)
