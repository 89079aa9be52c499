"""Reading annotated lines: truth from the annotation, corruption proved false."""

from __future__ import annotations

import random

import pytest

from training.generator.algebra import true_chain
from training.real import canonical, change_digit, sentence, side_of


@pytest.mark.parametrize(
    ("raw", "text", "formula", "good"),
    [
        ("He has 16 - 3 = <<16-3=13>>13 eggs.", "He has 16 - 3 = 13 eggs.", "16-3=13", True),
        ("so 4200*.30=$<<4200*.30=1260.0>>1260", "so 4200*.30=$1260", "4200*.30=1260", True),
        ("She has 2 x 6 = <<2*6=13>>13", "She has 2 x 6 = 13", "2*6=13", False),
        ("7 boxes * 3 pens = <<7*3=21>>21 pens", "7 boxes * 3 pens = 21 pens", "", True),
    ],
)
def test_sentence_reads_annotations(raw: str, text: str, formula: str, good: bool) -> None:
    line = sentence(raw)
    assert line is not None
    assert (line.text, line.formula, line.good) == (text, formula, good)


def test_sentence_without_annotation_is_none() -> None:
    assert sentence("The answer is 4.") is None


def test_change_digit_makes_the_formula_false() -> None:
    line = sentence("He has 16 - 3 = <<16-3=13>>13 eggs.")
    assert line is not None
    for seed in range(50):
        changed = change_digit(random.Random(seed), line)
        assert changed is not None
        assert sum(a != b for a, b in zip(changed, line.text, strict=True)) == 1
        assert not true_chain(canonical(changed[line.start : line.end]))


def test_side_of_is_stable_and_total() -> None:
    sides = [side_of(f"problem {i}", 3) for i in range(1000)]
    assert sides == [side_of(f"problem {i}", 3) for i in range(1000)]
    assert 240 < sides.count("heldout") < 360
