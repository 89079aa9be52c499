"""Labels of GSM8K solutions of which only the final answer is known, and what is left out."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from training.smollm2.data import (
    MEASURED,
    gsm8k,
    label_lines,
    measured_problems,
    mixture,
    plain,
    prm800k,
    real_solutions,
    results,
)

RIGHT = ["Half is 6/2=<<6/2=3>>3", "Both are 6+3=<<6+3=9>>9", "A: 9"]


def record(steps: list[str], right: bool, problem: str = "Six and half of it?") -> dict[str, Any]:
    return {"problem": problem, "steps": steps, "final_answer_correct": right}


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        ("He has 3*4=<<3*4=12>>12", ["12"]),
        ("So 10/4=<<10/4=2.5>>2.5 and <<1+1=2>>2", ["5/2", "2"]),
        ("So 3*4=<<3*4=13>>13", None),
        ("Nothing to see", []),
        ("x=<<x+1=3>>3", []),
    ],
)
def test_results_of_a_line(step: str, wanted: list[str] | None) -> None:
    assert results(step) == wanted


@pytest.mark.parametrize(
    ("steps", "right", "wanted"),
    [
        (RIGHT, True, [True, True, True]),
        (["6+2=<<6+2=8>>8", "So 9"], True, [True, True]),
        (["6/2=<<6/2=4>>4", "A: 9"], True, [None, True]),  # right all the same: nobody knows
        (["6/2=<<6/2=3>>3", "3+1=<<3+1=4>>4", "A: 4"], False, [True, False, None]),
        (["6/2=<<6/2=4>>4", "A: 4"], False, [False, None]),
        (["6/2=<<6/2=3>>3", "A: 3"], False, [True, False]),
        (["Hm.", "6*6=<<6*6=36>>36", "A: 36"], False, [None, False, None]),
    ],
)
def test_lines_are_labelled_up_to_the_first_error(
    steps: list[str], right: bool, wanted: list[bool | None]
) -> None:
    assert label_lines(record(steps, right), {"3", "9"}) == wanted


def test_without_a_right_solution_only_sums_and_answers_are_labelled() -> None:
    steps = ["6/2=<<6/2=3>>3", "3+1=<<3+1=4>>4", "A: 4"]
    assert label_lines(record(steps, False), set()) == [None, None, False]


def test_gsm8k_takes_annotations_out_and_says_the_answer() -> None:
    right, wrong = gsm8k(
        [record(RIGHT, True), record(["6*6=<<6*6=36>>36"], False)], random.Random(0)
    )
    assert [line.text for line in right.lines[:2]] == ["Half is 6/2=3", "Both are 6+3=9"]
    assert "9" in right.lines[2].text
    assert "A:" not in right.lines[2].text
    assert wrong.first_error == 0


def test_prm800k_is_labelled_up_to_its_first_error() -> None:
    (solution,) = prm800k([{"problem": "x", "steps": ["a", "b", "c"], "label": 1}])
    assert [line.good for line in solution.lines] == [True, False, None]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder in which one GSM8K problem is measured on, spelled otherwise."""
    held = {"problem": "Six,  AND half of it", "steps": ["3"], "label": -1}
    files = {
        **{name: [held] for name in MEASURED},
        "gsm8k_model_solutions": [
            record(RIGHT, True),
            *(record(RIGHT, True, f"{n} and half?") for n in range(40)),
        ],
        "prm800k_val": [{"problem": "six and half of it", "steps": ["a"], "label": 0},
                        {"problem": "other", "steps": ["a", "b"], "label": 1}],
    }  # fmt: skip
    for name, records in files.items():
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as out:
            out.writelines(json.dumps(item) + "\n" for item in records)
    return tmp_path


def test_no_measured_problem_is_trained_on(data: Path) -> None:
    assert measured_problems(data) == {"six and half of it"}
    train, held = real_solutions(data, "train"), real_solutions(data, "heldout")
    problems = {plain(s.problem) for part in (*train.values(), *held.values()) for s in part}
    assert "six and half of it" not in problems
    assert "other" in problems
    trained = {s.problem for s in train["gsm8k"]}
    assert trained.isdisjoint(s.problem for s in held["gsm8k"])
    assert len(trained) + len(held["gsm8k"]) == 40


def test_mixture_is_seeded_and_goes_on_for_ever(data: Path) -> None:
    def first(seed: int) -> list[str]:
        stream = mixture(data, seed)
        return [next(stream).problem for _ in range(120)]

    assert first(3) == first(3) != first(4)
