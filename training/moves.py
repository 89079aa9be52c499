"""How exactly a checkpoint works out equations: one move that is right, or wrong by a little.

    python -m training.moves training/checkpoint [CHECKPOINT ...]

One line after a linear equation; its number or its coefficient is right, or wrong by 1 or 2, what
nobody sees who only knows what a line must look like. Drawn by code of
its own, though the generator draws such moves too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from .generator import Line, Solution
from .scoring import Score
from .sums import print_table

CASES = 150
# From a random stream and how far the line is wrong: the equation, and the line after it.
Draw = Callable[[random.Random, int], tuple[str, str]]


def _side(*terms: tuple[int, str]) -> str:
    """Terms after one another: (3, "x"), (-5, "") to 3x - 5."""
    out = ""
    for at, (n, letter) in enumerate(terms):
        size = letter if letter and abs(n) == 1 else f"{abs(n)}{letter}"
        gap = ("", "-") if at == 0 else (" + ", " - ")
        out += gap[n < 0] + size
    return out


def _small(rng: random.Random) -> int:
    return rng.randint(2, 9)


def _constants(letter_first: bool, minus: bool) -> Draw:
    def draw(rng: random.Random, off: int) -> tuple[str, str]:
        a, b, d = _small(rng) * (-1 if minus else 1), rng.randint(1, 20), rng.randint(1, 30)
        c = rng.choice([n for n in range(-15, 16) if n and abs(b + n) > 2])  # no line ends in + 0
        result = b + c + off
        left = ((a, "x"), (b, ""), (c, "")) if letter_first else ((b, ""), (a, "x"), (c, ""))
        after = ((a, "x"), (result, "")) if letter_first else ((result, ""), (a, "x"))
        return f"{_side(*left)} = {d}", f"{_side(*after)} = {d}"

    return draw


def _letters(rng: random.Random, off: int) -> tuple[str, str]:
    a, b, c, d = _small(rng), rng.randint(1, 20), _small(rng), rng.randint(21, 40)
    left = _side((a, "x"), (b, ""), (c, "x"))
    return f"{left} = {d}", f"{_side((a + c + off, 'x'), (b, ''))} = {d}"


def _take(rng: random.Random, off: int) -> tuple[str, str]:
    a, b, d = _small(rng), rng.randint(1, 20), rng.randint(1, 30)
    return f"{_side((a, 'x'), (b, ''))} = {d}", f"{a}x = {d - b + off}"


def _take_from_minus(rng: random.Random, off: int) -> tuple[str, str]:
    a, b, d = _small(rng), rng.randint(1, 20), rng.randint(1, 30)
    return f"{b} - {a}x = {d}", f"-{a}x = {d - b + off}"


def _across(rng: random.Random, off: int) -> tuple[str, str]:
    a, b, d = _small(rng), rng.randint(1, 20), rng.randint(1, 30)
    return f"{b} - {a}x = {d}", f"{a}x = {b - d + off}"


def _expand(rng: random.Random, off: int) -> tuple[str, str]:
    a, c, d, n = _small(rng), rng.randint(2, 12), rng.randint(1, 30), rng.randint(1, 20)
    return f"{n} - {a}(x - {c}) = {d}", f"{n} - {a}x + {a * c + off} = {d}"


MOVES: dict[str, Draw] = {
    "ax + b + c to ax + n": _constants(True, False),
    "b + ax + c to n + ax": _constants(False, False),
    "b - ax + c to n - ax": _constants(False, True),
    "ax + b + cx to nx + b": _letters,
    "ax + b = c to ax = n": _take,
    "b - ax = c to -ax = n": _take_from_minus,
    "b - ax = c to ax = n": _across,
    "b - a(x - c) to b - ax + n": _expand,
}


def solutions(draw: Draw, cases: int) -> Iterator[Solution]:
    """So many right lines and so many wrong by 1 or 2, each after its equation."""
    rng = random.Random(78)
    for _ in range(cases):
        for off in (0, rng.choice((-2, -1, 1, 2))):
            equation, line = draw(rng, off)
            error = "slip" if off else "none"
            yield Solution(f"Solve for x: {equation}.", (Line(line, not off, error),), "move")


def measure(score: Score, draw: Draw, cases: int = CASES) -> tuple[float, float]:
    """Share of lines wrong by 1 or 2 that pass, and of right ones that are flagged."""
    passed = flagged = 0
    for solution in solutions(draw, cases):
        (line,) = solution.lines
        good = score(solution.problem, [line.text])[0] >= 0.5
        passed += good and not line.good
        flagged += not good and bool(line.good)
    return passed / cases, flagged / cases


if __name__ == "__main__":
    print_table(MOVES, measure, places=0)
