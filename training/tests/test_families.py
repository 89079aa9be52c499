"""The table of families counts what is lost, and draws as training and evaluation do."""

from __future__ import annotations

import math

import pytest

from training.families import measure, solutions
from training.generator import systems
from training.generator.mixture import FAMILIES


@pytest.mark.parametrize("family", ["fact", "system", "linear"])
def test_labels_as_scores_lose_nothing(family: str) -> None:
    labels = {
        (s.problem, *(line.text for line in s.lines)): [float(bool(line.good)) for line in s.lines]
        for s in solutions(family, "train", 30)
    }
    found = measure(lambda problem, steps: labels[(problem, *steps)], family, "train", 30)
    assert found.loss == pytest.approx(0)
    assert (found.passed, found.flagged) == (0, 0)


def test_one_score_for_all_loses_what_it_must() -> None:
    half = measure(lambda _, steps: [0.5] * len(steps), "fact", "heldout", 40)
    assert half.loss == pytest.approx(math.log(2))
    assert (half.passed, half.flagged) == (1, 0)  # 0.5 passes
    never = measure(lambda _, steps: [0.0] * len(steps), "fact", "heldout", 40)
    assert (never.passed, never.flagged) == (0, 1)
    assert 1 < never.loss < 20  # not infinite


def test_held_out_draws_have_held_out_words() -> None:
    asked = {s.problem.split(" if ")[0][:8] for s in solutions("system", "heldout", 40)}
    assert asked == {systems.SYSTEM_ASK[4][:8]}
    assert all(draw for draw in map(list, (solutions(name, "heldout", 2) for name in FAMILIES)))
