"""A record encoded piece by piece is the record encoded whole, for every layout of a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from session_scorers import LATE, RECIPES, make, recipe_of
from tokenizers import Tokenizer

from prm_edge_runtime import encoding
from prm_edge_runtime.encoding import RecipeEncoder
from prm_edge_runtime.errors import InputError, InputTypeError, RecipeError
from prm_edge_runtime.manifest import TOKENIZER_NAME
from prm_edge_runtime.recipe import Slot, Tag

TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["<|begin|>", "\n\n", " ", "  x", "e\u0301", "\n", "1/2 = 0.5\r\n"]),
)


def encoder_of(package: Path, name: str) -> RecipeEncoder:
    changes = LATE if name == "late" else RECIPES[name]
    return RecipeEncoder((package / TOKENIZER_NAME).read_bytes(), recipe_of(package, changes))


@pytest.fixture(scope="module", params=RECIPES)
def encoder(request: pytest.FixtureRequest, tiny_package: Path) -> RecipeEncoder:
    return encoder_of(tiny_package, request.param)


@given(problem=TEXT, steps=st.lists(TEXT, max_size=5))
@example(problem="", steps=["", "", ""])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_encode_in_pieces_is_encode(encoder: RecipeEncoder, problem: str, steps: list[str]) -> None:
    assert encoder.incremental
    whole = encoder.encode(problem, steps)
    ids = encoder.encode_prompt(problem).tolist()
    reads = []
    for index, step in enumerate(steps):
        ids += encoder.encode_step(step, problem=None if index else problem).tolist()
        reads.append(len(ids) - 1)
    assert reads == whole.reads.tolist()
    # without a step, what the prompt and the first step share has not been said yet
    assert ids == whole.ids.tolist()[: None if steps else len(ids)]


def test_encode_step_where_a_step_needs_the_one_before(tiny_package: Path) -> None:
    encoder = encoder_of(tiny_package, "late")
    assert not encoder.incremental
    with pytest.raises(RecipeError, match="cannot be encoded without the one before"):
        encoder.encode_step("x")


def test_encode_step_where_the_tag_joins_its_neighbours(tiny_package: Path) -> None:
    raw = (tiny_package / TOKENIZER_NAME).read_bytes()
    semicolon = Tokenizer.from_str(raw.decode()).token_to_id(";")
    step = (Slot(name="step"), Tag(text=";", id=semicolon))
    encoder = RecipeEncoder(raw, recipe_of(tiny_package, {"encode": "joint", "step": step}))
    assert not encoder.incremental
    with pytest.raises(RecipeError, match="cannot be encoded without the one before"):
        encoder.encode_step("x")
    with make(tiny_package, {"encode": "joint", "step": step}) as scorer:
        session = scorer.session("p")
        assert not session.incremental
        scores = [session.add("2x = 8"), session.add("x = 4")]
        assert tuple(scores) == session.scores == scorer.score("p", ["2x = 8", "x = 4"]).scores
        first = scorer.rank("p", [["2x = 8", "x = 4"], ["2x = 8", "x = 5"]]).candidates[0]
        assert first.scores == session.scores


def test_encode_pieces_of_another_kind(
    encoder: RecipeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputTypeError, match="problem must be a string, got int"):
        encoder.encode_prompt(5)  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match="step must be a string, got int"):
        encoder.encode_step(5)  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match="problem must be a string, got int"):
        encoder.encode_step("x", problem=5)  # type: ignore[arg-type]
    monkeypatch.setattr(encoding, "MAX_CHARACTERS", 5)
    for use in (
        lambda: encoder.encode_prompt("123456"),
        lambda: encoder.encode_step("123456"),
        lambda: encoder.encode_step("123", problem="456"),
    ):
        with pytest.raises(InputError, match="have 6 characters together, more than the 5"):
            use()
