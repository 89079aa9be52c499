"""``prm-edge demo`` draws the shipped solutions; its sums are right where they say so."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_scorer import DIFFERENCE, RAW, FakeScorer, fake_scorer

from prm_edge.cli import cli
from prm_edge.cli import demo as demo_module
from prm_edge.cli.demo import demo_lines, last_number
from prm_edge.cli.drawing import BAR_CELLS, PLAIN, PRETTY
from prm_edge.records import decode_line, read_record
from prm_edge_runtime.recipe import Recipe
from prm_edge_runtime.scorer import Scorer


def demo(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["demo", *map(str, arguments)])


@pytest.fixture(autouse=True)
def _fake_model(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "tiny_package" not in request.fixturenames:
        use(monkeypatch, fake_scorer())


def use(monkeypatch: pytest.MonkeyPatch, scorer: Scorer) -> None:
    monkeypatch.setattr(demo_module, "load_scorer", lambda *a, **k: scorer)


def grade(monkeypatch: pytest.MonkeyPatch, marks: dict[str, float]) -> None:
    """Let the fake score the steps that hold one of the marks."""

    def score(step: str) -> float:
        return next((value for mark, value in marks.items() if mark in step), 0.9)

    monkeypatch.setattr("fake_scorer._score", score)


def test_demo_lines_are_records_that_anybody_can_score() -> None:
    for line in demo_lines():
        data = decode_line(line)
        read_record(data)
        drafts = data.get("candidates") or [data["steps"]]
        labels = data["labels"] if "candidates" in data else [data["label"]]
        for steps, label in zip(drafts, labels, strict=True):
            assert -1 <= label < len(steps)


def test_demo_answers_tell_what_was_planted_only_in_part() -> None:
    """The first problem's drafts end alike, right and wrong: the answer cannot tell them apart."""
    answered = {}
    for line in demo_lines():
        data = decode_line(line)
        drafts = data.get("candidates") or [data["steps"]]
        answered[data["id"]] = [last_number(steps[-1]) == data["answer"] for steps in drafts]
    assert answered == {
        "sign-twice": [True, True],
        "both-sides": [True],
        "percent": [False],
        "pencils": [False],
    }


def test_demo_lines_are_right_where_no_mistake_was_planted() -> None:
    """Every equation between plain numbers holds, but for those in a step made wrong."""
    sums = re.compile(r"(?<![\w.])((?:\d+ [-+*/] )+\d+) = \$?(\d+)")
    holds, fails = 0, 0
    for line in demo_lines():
        data = decode_line(line)
        for index, step in enumerate(data.get("steps", [])):
            right = [evaluate(left) == int(result) for left, result in sums.findall(step)]
            holds += sum(right)
            fails += len(right) - sum(right)
            assert all(right) or index == data["label"], step
    assert (holds, fails) == (6, 1)


def evaluate(text: str) -> Fraction:
    total = Fraction(0)
    for sign, term in re.findall(r"(^|[-+]) ?([\d */]+)", text):
        value = Fraction(1)
        for operator, number in re.findall(r"(^|[*/]) ?(\d+)", term.strip()):
            value = value / int(number) if operator == "/" else value * int(number)
        total += -value if sign == "-" else value
    return total


def test_demo_draws_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    grade(monkeypatch, {"-2x = 10": 0.2, "$24": 0.25})
    result = demo()
    assert (result.exit_code, result.stderr) == (0, "")
    text = result.stdout
    assert text.startswith("fake (cpu-fp32, 0123456789ab) on cpu, named by -m\n\n1. Solve for x")
    assert re.search(r"0\.200  Subtract 11 .*-2x = 10\.   <- first error\n", text)
    assert (
        "flawed at step 3 (it was written with a mistake in step 3, and its answer is right)"
        in text
    )
    assert "sound (it was written with no mistake, and its answer is right)" in text
    assert "by the answer alone: A and B would be accepted, 1 of them with a wrong step" in text
    assert "served: draft B, the best sound one (min 0.900)" in text
    assert "18 steps, " in text
    assert "package: 4.5 MB with cpu-fp32" in text
    assert "NOTICE" not in text


def test_demo_serves_nothing_when_no_draft_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    grade(monkeypatch, {"-2x = 10": 0.1, "-2x = -10": 0.2})
    assert "served: none: no draft is sound; the best of them is B by min" in demo().stdout


def test_demo_survives_a_package_too_short_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = FakeScorer().score("p", ["too long"] * 4, on_too_long="null")
    scorer = fake_scorer()
    ranked = FakeScorer().rank("p", [["too long"] * 4] * 2, on_too_long="null")
    monkeypatch.setattr(scorer, "rank", lambda *a, **k: ranked)
    monkeypatch.setattr(
        scorer, "score", lambda p, s, **_: cut if len(s) == 4 else FakeScorer().score(p, s)
    )
    use(monkeypatch, scorer)
    text = demo().stdout
    assert "served: none: no draft could be scored" in text
    assert f"{PRETTY[1] * BAR_CELLS}   none  " in text


def test_demo_repeats_the_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, fake_scorer(provenance={"notice": "random weights"}))
    assert "\nNOTICE: random weights" in demo().stdout
    assert json.loads(demo("--json").stdout)["notice"] == "random weights"


@pytest.mark.parametrize("recipe", [DIFFERENCE, RAW])
@pytest.mark.parametrize(("score", "cells"), [(0.0, 6), (1.0, None), (-1.0, None)])
def test_demo_draws_other_ranges(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, score: float, cells: int | None
) -> None:
    use(monkeypatch, fake_scorer(recipe))
    grade(monkeypatch, {"": score})
    bars = re.findall(f"   ([{''.join(PRETTY)}]{{{BAR_CELLS}}}) ", demo().stdout)
    assert len(bars) == 18
    full = bars[0].count(PRETTY[0])
    assert full == cells if cells is not None else (full > 6) == (score > 0)


def test_demo_draws_plainly_where_the_terminal_is_plain() -> None:
    result = CliRunner(charset="ascii").invoke(cli, ["demo"])
    assert result.exit_code == 0
    assert PLAIN[0] * 9 in result.stdout


def test_demo_writes_json() -> None:
    data = json.loads(demo("--json").stdout)
    assert (data["package"], data["variant"], data["size_bytes"]) == ("fake", "cpu-fp32", 4_500_000)
    assert len(data["records"]) == 4
    assert data["records"][0]["best_sound"] == 0
    assert all(record["ms"] >= 0 for record in data["records"])


def test_demo_says_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fake_scorer.BROKEN", "Subtract 3x from both sides: 4x - 4 = 16.")
    result = demo()
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: line 2 of the demo: the model returned a logit that is not finite\n"
    )


def test_demo_runs_a_real_package(tiny_package: Path) -> None:
    result = demo("-m", tiny_package, "--device", "cpu")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "ms per step" in result.stdout
