"""The table of sums counts what passes and what is flagged."""

from __future__ import annotations

import random

import pytest

from training.sums import KINDS, measure


def exact(problem: str, steps: list[str]) -> list[float]:
    del problem
    return [float(eval(step.replace("=", "=="))) for step in steps]  # sums of this test alone


@pytest.mark.parametrize("name", KINDS)
def test_exact_arithmetic_misses_nothing(name: str) -> None:
    assert measure(exact, KINDS[name], 10) == (0, 0)


@pytest.mark.parametrize(("value", "found"), [(1.0, (1, 0)), (0.0, (0, 1))])
def test_one_verdict_for_all_is_half_wrong(value: float, found: tuple[int, int]) -> None:
    assert measure(lambda _, steps: [value] * len(steps), KINDS["* to 12 by 99"], 5) == found


def test_every_kind_draws_true_sums() -> None:
    rng = random.Random(0)
    for draw in KINDS.values():
        assert exact("", [draw(rng) for _ in range(50)]) == [1.0] * 50
