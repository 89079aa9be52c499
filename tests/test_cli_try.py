"""``prm-edge try``: lines in, a score for each, on the built-in model and with piped input."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from prm_edge import Scorer
from prm_edge.cli import cli

PROBLEM = "Solve for x: 3(x - 4) = x + 2"
STEPS = ["3x - 12 = x + 2", "2x - 12 = 2", "2x = 14"]


def attempt(*arguments: str, typed: str) -> Result:
    return CliRunner().invoke(cli, ["try", PROBLEM, *arguments], input=typed)


def test_try_gives_the_scores_of_score() -> None:
    result = attempt("--json", typed="\n".join([STEPS[0], "", *STEPS[1:]]) + "\n")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    with Scorer.load() as scorer:
        expected = scorer.score(PROBLEM, STEPS)
    assert shown["steps"] == STEPS
    assert shown["scores"] == [round(score or 0.0, 6) for score in expected.scores]
    assert (shown["verdict"], shown["first_error"]) == (expected.verdict, expected.first_error)
    assert shown["n_tokens"] == expected.n_tokens


def test_try_draws_each_line_and_takes_back() -> None:
    result = attempt(typed=f"{STEPS[0]}\n3x + 12 = 7\n:undo\n{STEPS[1]}\n:quit\nnot read\n")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [STEPS[0] in lines[0], lines[2], STEPS[1] in lines[3]] == [
        True,
        "taken back: 3x + 12 = 7",
        True,
    ]
    assert lines[-1].endswith(": 2 steps")
    assert "not read" not in result.stdout
    assert "prm-edge: scoring with" in result.stderr


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (":undo\n", "cannot be taken back"),
        ("x = 1 + " * 3000 + "\n", "beyond the 2048"),
    ],
)
def test_try_goes_on_after_a_line_it_cannot_take(typed: str, said: str) -> None:
    result = attempt(typed=typed + STEPS[0] + "\n")
    assert result.exit_code == 0, result.output
    assert said in result.stderr
    assert result.stdout.splitlines()[-1].endswith(": 1 step")


def test_try_refuses_an_empty_problem_by_name() -> None:
    result = CliRunner().invoke(cli, ["try", "x" * 20000], input="")
    assert result.exit_code == 1
    assert "the problem alone takes" in result.stderr
