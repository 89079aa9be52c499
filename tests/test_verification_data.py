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
