"""A digit's token says its place, and no text is changed by it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from training.tokens import FIRST_PLACED, placed_digits, train_tokenizer

TEXTS = ["Solve 3x + 4 = 19", "so x = 5", "\n", "12 + 30 = 42", "half of 7.5 is 3.75"] * 40


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 500)


def places(tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    """(place, digit) of each digit: 0 hundredths, 1 tenths, 2 tens, ..., -1 units."""
    out = []
    for letter in tokenizer.normalizer.normalize_str(text):
        if ord(letter) in range(FIRST_PLACED, FIRST_PLACED + 60):
            out.append(divmod(ord(letter) - FIRST_PLACED, 10))
        elif letter.isdigit():
            out.append((-1, int(letter)))
    return out


def test_each_digit_has_its_place(tokenizer: Tokenizer) -> None:
    assert places(tokenizer, "407") == [(3, 4), (2, 0), (-1, 7)]
    assert places(tokenizer, "3x") == [(-1, 3)]
    assert places(tokenizer, "12.05") == [(2, 1), (-1, 2), (1, 0), (0, 5)]
    assert places(tokenizer, ".5+3.125") == [(1, 5), (-1, 3), (1, 1), (0, 2), (0, 5)]
    assert places(tokenizer, "9876543")[:4] == [(5, 9), (5, 8), (5, 7), (4, 6)]
    assert places(tokenizer, "21/34 = 5. 6") == [(2, 2), (-1, 1), (2, 3), (-1, 4), (-1, 5), (-1, 6)]


@given(st.integers(0, 10**9), st.integers(0, 10**4))
def test_a_number_is_one_token_a_digit_and_comes_back(
    tokenizer: Tokenizer, whole: int, part: int
) -> None:
    text = f"{whole}.{part}"
    found = tokenizer.encode(text)
    digits = [text[a:b] for a, b in found.offsets if text[a:b].isdigit()]
    assert "".join(digits).endswith(text.replace(".", "")[1:])
    assert len(found.ids) <= len(text) + 1
    assert tokenizer.decode(found.ids) == text


def test_every_stand_in_is_a_token(tokenizer: Tokenizer) -> None:
    rows = {tuple(tokenizer.encode(stand).ids[1:]) for _, _, stand in placed_digits()}
    assert {len(row) for row in rows} == {1}
    assert len(rows) == 60


def test_the_file_escapes_nothing_that_engines_read_differently(tokenizer: Tokenizer) -> None:
    normalizer = json.loads(tokenizer.to_str())["normalizer"]
    patterns = [part["pattern"]["Regex"] for part in normalizer["normalizers"][:-1]]
    assert len(patterns) == 60
    assert not any("\\x" in one or "\\u" in one for one in patterns)
