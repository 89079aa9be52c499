"""The table of moves counts what passes and what is flagged."""

from __future__ import annotations

import random

import pytest

from training.generator.algebra import equivalent
from training.moves import MOVES, measure


def exact(problem: str, steps: list[str]) -> list[float]:
    before = problem.removeprefix("Solve for x: ").removesuffix(".")
    return [float(equivalent(before, step)) for step in steps]


@pytest.mark.parametrize("name", MOVES)
def test_exact_algebra_misses_nothing(name: str) -> None:
    assert measure(exact, MOVES[name], 40) == (0, 0)


@pytest.mark.parametrize(("value", "found"), [(1.0, (1, 0)), (0.0, (0, 1))])
def test_one_verdict_for_all_is_half_wrong(value: float, found: tuple[float, float]) -> None:
    draw = MOVES["ax + b = c to ax = n"]
    assert measure(lambda _, steps: [value] * len(steps), draw, 20) == found


@pytest.mark.parametrize("name", MOVES)
def test_no_term_is_written_as_nothing_or_with_a_double_sign(name: str) -> None:
    rng = random.Random(3)
    for off in (-2, -1, 0, 1, 2):
        for _ in range(200):
            for text in MOVES[name](rng, off):
                assert "--" not in text
                assert "0x" not in text.replace("10x", "").replace("20x", "")
