"""Pools of training rows follow from their number, and packing loses nothing."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest

from training import batches
from training.batches import IGNORE, Encoded, Stream, encode, pack
from training.generator import Line, Solution
from training.generator.mixture import Start
from training.tokens import train_tokenizer

TEXTS = ["Solve 3x + 4 = 19", "so x = 5", "\n", "12 + 30 = 42", "half of 7.5 is 3.75"] * 40
TOKENIZER = train_tokenizer(TEXTS, 500)


@pytest.fixture
def made_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real half needs data that is not in the repository."""
    monkeypatch.setattr(batches, "TUTOR", 0.0)
    monkeypatch.setattr(batches, "GSM", 0.0)


def stream(start: Start = "mixed") -> Stream:
    return Stream(TOKENIZER, cast("Any", None), 7, 320, start)


@pytest.mark.usefixtures("made_only")
def test_a_pool_follows_from_its_number_and_share() -> None:
    first = stream().pool(3, 2000, 1.0)
    assert first == stream().pool(3, 2000, 1.0)
    assert first != stream().pool(4, 2000, 1.0)
    assert 2000 <= sum(len(row.ids) for row in first) < 2000 + 320


@pytest.mark.usefixtures("made_only")
def test_a_run_that_begins_with_drills_is_sums_and_moves_alone() -> None:
    def drills(start: Start, share: float) -> float:
        drawn = stream(start)
        rng = random.Random(0)
        found = [drawn.solution(rng, share).template.split("/")[0] for _ in range(300)]
        return sum(name in ("sums", "moves") for name in found) / 300

    assert drills("drills", 0.3) == 1
    assert drills("drills", 1.0) < 0.5
    assert drills("mixed", 0.0) < 0.5


@pytest.mark.usefixtures("made_only")
def test_packing_keeps_every_row_within_the_limit() -> None:
    rows = stream().pool(0, 5000, 1.0)
    packed = pack(rows, 1000, random.Random(1))
    found = sorted(
        tuple(token for token, here in zip(ids, spoken, strict=True) if here)
        for batch in packed
        for ids, spoken in zip(batch.ids.tolist(), (batch.ids != 0).tolist(), strict=True)
    )
    assert found == sorted(tuple(row.ids) for row in rows)
    assert all(batch.ids.numel() <= 1000 + 8 * len(batch.ids) for batch in packed)


def test_placed_digits_are_taught_and_words_are_not() -> None:
    line = Line("half of 12 + 30 = 42", good=True)
    row: Encoded = encode(TOKENIZER, Solution("Add", (line,), "made"), 320)
    taught = [TOKENIZER.decode([token]).strip() for token in row.targets if token != IGNORE]
    assert "".join(taught).replace(" ", "") == "12+30=42"
    assert row.so_far.count(1) == len(row.ids) - len(TOKENIZER.encode("Add").ids) - 1
