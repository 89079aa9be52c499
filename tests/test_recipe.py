"""Recipes as data: what is written is what is read, and everything else is refused by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_edge_runtime.errors import RecipeError
from prm_edge_runtime.recipe import (
    AGGREGATES,
    ENCODINGS,
    LABEL_MEANINGS,
    SCORE_KINDS,
    UNIT,
    Part,
    Recipe,
    Score,
    Slot,
    Split,
    Tag,
    Text,
    Tokens,
    allowed_aggregates,
    validate,
)

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
IDS = st.lists(st.integers(0, 200_000), min_size=1, max_size=4).map(tuple)
LITERAL = st.one_of(
    st.builds(lambda text: Text(text=text), WORDS),
    st.builds(lambda ids, text: Tokens(ids=ids, text=text), IDS, WORDS),
)


def recipe(**changes: Any) -> Recipe:
    plain = Recipe(
        family="trl",
        encode="separate",
        prompt=(Tokens(ids=(0,), text="<s>"), Slot(name="problem")),
        between=(Text(text=" "),),
        step=(Slot(name="step"), Tokens(ids=(5, 6), text="\n\n", read=-1)),
        split=Split(separator="\n"),
        logits=2,
        score=Score(kind="softmax", good=1),
        aggregates=("min", "mean"),
        aggregate="min",
        label_meaning="local",
    )
    return dataclasses.replace(plain, **changes)


@st.composite
def around(draw: st.DrawFn, middle: tuple[Part, ...]) -> tuple[Part, ...]:
    """Literal parts with ``middle`` somewhere among them, in order."""
    parts: list[Part] = list(draw(st.lists(LITERAL, max_size=3)))
    at = sorted(draw(st.integers(0, len(parts))) for _ in middle)
    for offset, (index, part) in enumerate(zip(at, middle, strict=True)):
        parts.insert(index + offset, part)
    return tuple(parts)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    ids = draw(IDS)
    encode = draw(st.sampled_from(ENCODINGS))
    read: Part = Tokens(ids=ids, text=draw(WORDS), read=draw(st.integers(-len(ids), len(ids) - 1)))
    if encode == "joint" and draw(st.booleans()):
        read = Tag(text=draw(WORDS), id=ids[0], then=ids[1:])
    slot, whole = Slot(name="step", strip=draw(st.booleans())), draw(st.booleans())
    step = draw(around((slot, read)))
    if (whole or encode in ("separate", "sections")) and draw(st.booleans()):
        step = (*draw(st.lists(LITERAL, max_size=2)), dataclasses.replace(slot, read=-1))
    kind = draw(st.sampled_from(sorted(SCORE_KINDS)))
    logits = SCORE_KINDS[kind][0] or draw(st.integers(2, 5))
    good, bad = draw(st.permutations(range(logits)))[:2] if logits > 1 else (0, 0)
    score = Score(
        kind=kind,
        good=good if kind in ("softmax", "difference") else 0,
        bad=bad if kind == "difference" else 0,
        valid=tuple(draw(st.permutations(range(logits)))[1:]) if kind == "classes" else (),
        redundant=draw(st.none() | st.integers(0, logits - 1)) if kind == "classes" else None,
    )
    aggregates = tuple(
        draw(st.lists(st.sampled_from(allowed_aggregates(score)), min_size=1, unique=True))
    )
    return Recipe(
        family=draw(WORDS),
        encode=encode,
        prompt=draw(around((Slot(name="problem"),))),
        between=tuple(draw(st.lists(LITERAL, max_size=2))),
        step=step,
        split=Split(separator=None if whole else draw(WORDS), strip=draw(st.booleans())),
        logits=logits,
        score=score,
        aggregates=aggregates,
        aggregate=draw(st.sampled_from(aggregates)),
        label_meaning=draw(st.sampled_from(LABEL_MEANINGS)),
    )


@given(recipes())
@settings(max_examples=50, deadline=None)
def test_recipe_survives_json(made: Recipe) -> None:
    validate(made)
    written = json.dumps(made.to_dict(), ensure_ascii=False)
    assert Recipe.from_dict(json.loads(written)) == made


@given(recipes(), st.data())
@settings(max_examples=30, deadline=None)
def test_recipe_refuses_any_extra_or_missing_key(made: Recipe, data: st.DataObject) -> None:
    written = made.to_dict()
    key = data.draw(st.sampled_from(sorted(written)))
    with pytest.raises(RecipeError, match=f"key '{key}' is missing"):
        Recipe.from_dict({k: v for k, v in written.items() if k != key})
    with pytest.raises(RecipeError, match=f"unknown key '{key}x'"):
        Recipe.from_dict({**written, f"{key}x": 1})


def test_recipe_is_frozen_and_slotted() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign"):
        recipe().family = "other"  # type: ignore[misc]
    assert not hasattr(recipe(), "__dict__")


@pytest.mark.parametrize("kind", SCORE_KINDS)
def test_recipe_range_and_threshold(kind: str) -> None:
    made = recipe(score=Score(kind=kind), logits=SCORE_KINDS[kind][0] or 2)
    assert made.score.range == SCORE_KINDS[kind][1]
    assert made.default_threshold == SCORE_KINDS[kind][2]


@pytest.mark.parametrize("kind", SCORE_KINDS)
def test_allowed_aggregates_has_no_product_outside_the_unit_interval(kind: str) -> None:
    score = Score(kind=kind)
    allowed = allowed_aggregates(score)
    assert list(allowed) == sorted(allowed)
    assert ("prod" in allowed) == (score.range == UNIT)
    assert set(AGGREGATES) - set(allowed) <= {"prod"}


def test_recipe_not_an_object() -> None:
    with pytest.raises(RecipeError, match="recipe: must be an object, got a list"):
        Recipe.from_dict([])


def _set(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        inner: Any = data
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


TEXT, TOKENS = {"text": "a"}, {"tokens": [5], "spelled": "x"}
PROBLEM, STEP, READ = {"slot": "problem"}, {"slot": "step"}, {**TOKENS, "read": 0}
REFUSALS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "family type": (_set("family", value=5), r"recipe\.family: must be a string, got an integer"),
    "family empty": (_set("family", value=""), r"recipe\.family: must not be empty"),
    "encode": (
        _set("encode", value="both"),
        "must be one of joint, sections, separate, trimmed; got",
    ),
    "meaning": (_set("label_meaning", value="x"), "must be one of local, on_path, until_first"),
    "aggregate unknown": (_set("aggregate", value="max"), "must be one of last, mean, min, prod"),
    "aggregate not allowed": (
        _set("aggregate", value="last"),
        "'last' is not among the aggregates",
    ),
    "aggregates unknown": (_set("aggregates", value=["min", "max"]), "unknown 'max'; known: last"),
    "aggregates empty": (_set("aggregates", value=[]), "'min' is not among the aggregates"),
    "aggregates twice": (_set("aggregates", value=["min", "min"]), "must not name one twice"),
    "aggregates type": (_set("aggregates", value=[1]), "aggregates: must hold only strings"),
    "logits zero": (_set("logits", value=0), "logits: must be at least 1, got 0"),
    "logits one": (_set("logits", value=1), "'softmax' needs 2 logits or more"),
    "logits huge": (_set("logits", value=2**20 + 1), "logits: must be at most 1048576"),
    "logits boolean": (_set("logits", value=True), "must be an integer, got a boolean"),
    "prompt type": (_set("prompt", value={}), "prompt: must be a list, got an object"),
    "part type": (_set("prompt", 0, value="a"), r"prompt\[0\]: must be an object, got a string"),
    "part kind": (_set("prompt", 0, value={"txt": "a"}), "one of the keys text, tokens, slot"),
    "part two kinds": (_set("prompt", 0, value={**TEXT, **PROBLEM}), "unknown key 'slot'"),
    "part text empty": (_set("between", 0, value={"text": ""}), "literal text must not be empty"),
    "part text type": (_set("between", 0, value={"text": 1}), r"between\[0\]\.text: must be a str"),
    "part text no text": (
        _set("between", 0, value={"text": "a\ud800"}),
        r"between\[0\]: text must not hold a lone surrogate",
    ),
    "slot unknown": (_set("step", 0, value={"slot": "x"}), "must be one of problem, step; got 'x'"),
    "slot twice": (_set("prompt", value=[PROBLEM, PROBLEM]), r"slots \['problem'\], got \['prob"),
    "slot missing": (_set("prompt", value=[TEXT]), r"the slots \['problem'\], got \[\]"),
    "slot between": (_set("between", value=[STEP]), r"between: must have the slots \[\], got"),
    "slot of the other": (_set("step", 0, value=PROBLEM), r"slots \['step'\], got \['problem'\]"),
    "tokens empty": (_set("step", 1, "tokens", value=[]), "one or more ids, each 0 or more"),
    "tokens negative": (_set("step", 1, "tokens", value=[5, -1]), "one or more ids, each 0 or"),
    "tokens boolean": (_set("step", 1, "tokens", value=[True]), "must hold only integers"),
    "tokens unspelled": (_set("step", 1, value={"tokens": [5], "read": 0}), "'spelled' is missing"),
    "tokens no text": (
        _set("step", 1, "spelled", value="\udfff"),
        r"step\[1\]: text must not hold a lone surrogate",
    ),
    "read type": (_set("step", 1, "read", value="0"), "read: must be an integer, got a string"),
    "read null": (_set("step", 1, "read", value=None), "read: must be an integer, got null"),
    "read beyond": (_set("step", 1, "read", value=2), "read 2 is outside its 2 tokens"),
    "read before": (_set("step", 1, "read", value=-3), "read -3 is outside its 2 tokens"),
    "read in prompt": (_set("prompt", 0, value=READ), "only a part of step may have a read"),
    "read in between": (_set("between", 0, value=READ), "only a part of step may have a read"),
    "read missing": (_set("step", 1, value=TOKENS), "exactly one read position, got 0"),
    "read twice": (_set("step", value=[STEP, READ, READ]), "exactly one read position, got 2"),
    "split type": (_set("split", value="\n"), "split: must be an object, got a string"),
    "tag empty": (_set("step", 1, value={"tag": "", "id": 5}), "literal text must not be empty"),
    "tag apart": (
        _set("step", 1, value={"tag": " x", "id": 5}),
        "a tag belongs in step, and needs encode 'joint'",
    ),
    "tag in the prompt": (
        _set("prompt", 0, value={"tag": " x", "id": 5}),
        "a tag belongs in step, and needs encode 'joint'",
    ),
    "tag without id": (_set("step", 1, value={"tag": " x"}), "key 'id' is missing"),
    "tag id": (_set("step", 1, value={"tag": "x", "id": -1}), "id: must be at least 0, got -1"),
    "slot strip": (
        _set("step", 0, value={"slot": "step", "strip": "yes"}),
        "strip: must be a boolean, got a string",
    ),
    "tag then type": (
        _set("step", 1, value={"tag": " x", "id": 5, "then": [True]}),
        "then: must hold only integers",
    ),
    "tag then negative": (
        _set("step", 1, value={"tag": " x", "id": 5, "then": [-1]}),
        "then must hold ids, each 0 or more",
    ),
    "slot read of the problem": (
        _set("prompt", 1, value={"slot": "problem", "read": -1}),
        "only the slot of the step may have a read position, -1 or lower",
    ),
    "slot read from the start": (
        _set("step", value=[{"slot": "step", "read": 0}]),
        "may have a read position, -1 or lower",
    ),
    "slot read before text": (
        _set("step", value=[{"slot": "step", "read": -1}, TEXT]),
        "a slot that is read must end its part of the text",
    ),
    "slot read beside tokens": (
        _set("step", value=[{"slot": "step", "read": -1}, READ]),
        "exactly one read position, got 2",
    ),
    "slot read type": (
        _set("step", value=[{"slot": "step", "read": None}]),
        "read: must be an integer, got null",
    ),
    "split empty": (_set("split", "separator", value=""), "separator: must not be empty"),
    "split number": (_set("split", "separator", value=1), "must be a string, got an integer"),
    "split key": (_set("split", "regex", value="x"), "split: unknown key 'regex'; known keys: sep"),
    "split strip": (_set("split", "strip", value=1), "strip: must be a boolean, got an integer"),
    "score kind": (_set("score", value={"kind": "max"}), "must be one of softmax, difference"),
    "score key": (_set("score", "bad", value=1), "score: unknown key 'bad'; known keys: good"),
    "score good": (_set("score", "good", value=2), "score: index outside the 2 logits"),
    "score negative": (_set("score", "good", value=-1), "good: must be at least 0, got -1"),
    "score same": (
        _set("score", value={"kind": "difference", "good": 1, "bad": 1}),
        "good and bad must differ",
    ),
    "score bad": (
        _set("score", value={"kind": "difference", "good": 1, "bad": 2}),
        "index outside the 2 logits",
    ),
    "score sigmoid": (_set("score", value={"kind": "sigmoid"}), "'sigmoid' needs 1 logit, got 2"),
    "score classes none": (
        _set("score", value={"kind": "classes", "valid": []}),
        "valid must name some of the classes, not all, each once",
    ),
    "score classes all": (
        _set("score", value={"kind": "classes", "valid": [0, 1]}),
        "valid must name some of the classes, not all, each once",
    ),
    "score classes twice": (
        _set("score", value={"kind": "classes", "valid": [1, 1]}),
        "valid must name some of the classes, not all, each once",
    ),
    "score classes beyond": (
        _set("score", value={"kind": "classes", "valid": [2]}),
        "score: index outside the 2 logits",
    ),
    "score redundant beyond": (
        _set("score", value={"kind": "classes", "valid": [1], "redundant": 2}),
        "score: index outside the 2 logits",
    ),
    "score redundant type": (
        _set("score", value={"kind": "classes", "valid": [1], "redundant": None}),
        "redundant: must be an integer, got null",
    ),
    "score raw": (_set("score", value={"kind": "raw"}), "'raw' needs 1 logit, got 2"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_recipe_refuses(name: str) -> None:
    change, match = REFUSALS[name]
    data = json.loads(json.dumps(recipe().to_dict()))
    change(data)
    with pytest.raises(RecipeError, match=match):
        Recipe.from_dict(data)


def test_recipe_refuses_a_read_where_steps_run_together() -> None:
    data = recipe().to_dict() | {"encode": "joint", "step": [{"slot": "step", "read": -1}]}
    with pytest.raises(RecipeError, match="needs encode 'separate' or 'sections', or solutions of"):
        Recipe.from_dict(data)


def test_recipe_refuses_a_product_of_differences() -> None:
    data = recipe().to_dict()
    data |= {
        "score": {"kind": "difference", "good": 1, "bad": 0},
        "aggregates": ["min", "prod"],
    }
    with pytest.raises(RecipeError, match=r"'prod' makes no sense outside \[0, 1\]"):
        Recipe.from_dict(data)


def test_recipe_lists_every_problem_at_once() -> None:
    data = recipe().to_dict() | {"family": 1, "logits": "two", "extra": None}
    with pytest.raises(RecipeError, match=r"(?s)3 problems:.*family.*logits.*unknown key 'extra'"):
        Recipe.from_dict(data)


def test_recipe_names_where_it_stands() -> None:
    with pytest.raises(RecipeError, match="mine: must be an object, got null"):
        Recipe.from_dict(None, where="mine")


def test_recipe_split_strips_unless_told_otherwise() -> None:
    data = recipe().to_dict()
    del data["split"]["strip"]
    assert Recipe.from_dict(data).split.strip


def test_validate_unknown_kind_of_a_recipe_made_in_code() -> None:
    # a kind that from_dict refuses leaves validate nothing to compare: it must not crash
    with pytest.raises(RecipeError, match="'prod' makes no sense"):
        validate(recipe(score=Score(kind="odd"), aggregates=("prod",), aggregate="prod"))
