"""A scorer that solves: a line of an equation in x is good when x's true value fulfils it.

A stand-in for a perfect model, to test what is built on one; it computes every score from the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from fake_scorer import RECIPE, FakeScorer

from prm_edge_runtime import results
from prm_edge_runtime.cache import Node
from prm_edge_runtime.results import SCORED, Ranking, StepScores
from prm_edge_runtime.session import Session

GOOD, BAD = 0.9, 0.1
_TOKEN = re.compile(r"\s*(\d+|[-+*/()x])")


class EquationScorer(FakeScorer):
    """Scores lines such as ``5 - 2(x - 3) = 1``; the problem holds the equation to solve."""

    max_tokens = 1024

    def score(
        self, problem: str, steps: Sequence[str], *, on_too_long: str = "error"
    ) -> StepScores:
        root = solution_of(problem.partition(":")[2].strip(" ."))
        scores = tuple(GOOD if holds(step, root) else BAD for step in steps)
        return StepScores(
            scores=scores,
            status=(SCORED,) * len(scores),
            threshold=self.threshold,
            n_tokens=len(scores),
            n_tokens_run=len(scores),
            aggregates=RECIPE.aggregates,
            default_aggregate=RECIPE.aggregate,
            logits=(None,) * len(scores),
        )

    def rank(
        self,
        problem: str,
        candidates: Sequence[Sequence[str]],
        by: str | None = None,
        *,
        on_too_long: str = "error",
    ) -> Ranking:
        scored = tuple(self.score(problem, steps) for steps in candidates)
        return results.rank(scored, by or RECIPE.aggregate)

    def session(self, problem: str) -> Session:
        return Session(_Track(self, problem), threshold=self.threshold)

    def self_test(self) -> float:
        return 0.0


class _Track:
    incremental = True

    def __init__(self, scorer: EquationScorer, problem: str) -> None:
        self._scorer = scorer
        self._problem = problem

    def start(self) -> tuple[Node, int]:
        return Node(parent=None, depth=0, n_tokens=0), 0

    def extend(self, tip: Node, steps: Sequence[str], *, keep: bool) -> tuple[list[Node], int]:
        scores = self._scorer.score(self._problem, steps).scores
        return [
            Node(
                parent=tip, depth=tip.depth + 1, n_tokens=tip.n_tokens + 1, score=float(score or 0)
            )
            for score in scores
        ], len(steps)


def holds(line: str, x: Fraction) -> bool:
    """Whether both sides are equal."""
    left, right = line.split("=")
    return _value(left, x) == _value(right, x)


def solution_of(equation: str) -> Fraction:
    """Solve an equation that is linear in x."""
    left, right = equation.split("=")

    def difference(x: int) -> Fraction:
        return _value(left, Fraction(x)) - _value(right, Fraction(x))

    at_0, at_1 = difference(0), difference(1)
    return -at_0 / (at_1 - at_0)


def _value(text: str, x: Fraction) -> Fraction:
    tokens = _TOKEN.findall(text)
    assert "".join(tokens) == text.replace(" ", ""), text

    def peek() -> str:
        return tokens[0] if tokens else ""

    def total() -> Fraction:
        sign = -1 if peek() == "-" else 1
        if peek() in ("-", "+"):
            tokens.pop(0)
        found = sign * product()
        while peek() in ("+", "-"):
            found += product() if tokens.pop(0) == "+" else -product()
        return found

    def product() -> Fraction:
        found = factor()
        while peek() and peek() not in ("+", "-", ")"):
            if peek() == "/":
                tokens.pop(0)
                found /= factor()
            else:
                if peek() == "*":
                    tokens.pop(0)
                found *= factor()  # 2(x - 3), 2x
        return found

    def factor() -> Fraction:
        token = tokens.pop(0)
        if token == "(":
            found = total()
            assert tokens.pop(0) == ")"
            return found
        return x if token == "x" else Fraction(token)

    found = total()
    assert not tokens, text
    return found
