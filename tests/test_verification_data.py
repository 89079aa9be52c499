"""The worked solutions that every export is proven on: complete, varied and well formed."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest

SOURCE = files("prm_edge_export") / "data" / "verification.jsonl"


@pytest.fixture(scope="module")
def solutions() -> list[dict[str, Any]]:
    text = SOURCE.read_text(encoding="utf-8")
    assert "\r" not in text
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_verification_data_is_well_formed(solutions: list[dict[str, Any]]) -> None:
    for solution in solutions:
        assert list(solution) == ["id", "problem", "steps", "label"]
        assert solution["problem"].strip() == solution["problem"] != ""
        assert 3 <= len(solution["steps"]) <= 12
        assert all(step.strip() == step != "" for step in solution["steps"])
        assert -1 <= solution["label"] < len(solution["steps"])


def test_verification_data_has_no_duplicates(solutions: list[dict[str, Any]]) -> None:
    for key in ("id", "problem"):
        assert len({solution[key] for solution in solutions}) == len(solutions)


def test_verification_data_is_large_and_balanced(solutions: list[dict[str, Any]]) -> None:
    assert len(solutions) >= 60
    assert sum(len(solution["steps"]) for solution in solutions) >= 350
    wrong = sum(solution["label"] >= 0 for solution in solutions)
    assert 0.4 < wrong / len(solutions) < 0.6
    # the first error is found everywhere, the first step included
    assert {0, 1, 2, 3, 4} <= {solution["label"] for solution in solutions}


def test_verification_data_is_varied(solutions: list[dict[str, Any]]) -> None:
    texts = [text for item in solutions for text in (item["problem"], *item["steps"])]
    lengths = [len(text) for text in texts]
    assert min(lengths) == 1
    assert max(lengths) > 200
    characters = set("".join(texts))
    assert len(characters) > 150
    for kind in ("$", "\\", "×", "≡", "`", "|", "€", "糖", "ü", "👕", "\n"):
        assert kind in characters, kind


# --- int8: solutions to calibrate on, to choose the plan with, and to be proven on

NAMES = ("verification.jsonl", "verification_int8.jsonl", "search.jsonl", "calibration.jsonl")


@pytest.fixture(scope="module")
def sets() -> dict[str, list[dict[str, Any]]]:
    folder = files("prm_edge_export") / "data"
    return {
        name: [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
        for name in NAMES
    }


@pytest.mark.parametrize("name", NAMES[1:])
def test_int8_data_is_well_formed(name: str, sets: dict[str, list[dict[str, Any]]]) -> None:
    for solution in sets[name]:
        assert list(solution) == ["id", "problem", "steps", "label"]
        assert solution["problem"].strip() == solution["problem"] != ""
        assert all(step.strip() == step != "" for step in solution["steps"])
        assert -1 <= solution["label"] < len(solution["steps"]) >= 3
    wrong = sum(solution["label"] >= 0 for solution in sets[name])
    assert 0.3 < wrong / len(sets[name]) < 0.6


def test_int8_data_is_disjoint(sets: dict[str, list[dict[str, Any]]]) -> None:
    problems = [solution["problem"] for name in NAMES for solution in sets[name]]
    assert len(set(problems)) == len(problems)


def test_int8_data_tells_one_percent_from_two(sets: dict[str, list[dict[str, Any]]]) -> None:
    steps = sum(len(item["steps"]) for name in NAMES[:2] for item in sets[name])
    # two standard errors of a flip rate of 1.5% are less than half a percent apart
    assert 2 * (0.015 * 0.985 / steps) ** 0.5 < 0.0055
