"""Ids and read positions; above all: no text a user types can move them."""

from __future__ import annotations

import dataclasses
import json
from collections import UserString, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from prm_edge_runtime import encoding
from prm_edge_runtime.encoding import Encoded, RecipeEncoder, check_steps, check_text
from prm_edge_runtime.errors import InputError, InputTypeError, RecipeError
from prm_edge_runtime.recipe import Recipe, Score, Slot, Split, Tag, Text, Tokens

CORPUS = ["Solve 2x + 3 = 11 for x.\n\nSubtract 3: 2x = 8.\nSo x = 4.", "12 apples cost $3. " * 3]
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<extra_0>")
PLAIN = ("<tool_call>", "  ", "x = ")  # added, not special: encode_special_tokens still sees them
PROBLEM = "Solve 2x + 3 = 11."
STEPS = ["Subtract 3: 2x = 8", "", "So x = 4."]


def build(
    model: str = "bpe", special: tuple[str, ...] = SPECIAL, plain: tuple[str, ...] = PLAIN
) -> Tokenizer:
    if model == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer: Any = trainers.BpeTrainer(
            vocab_size=300,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ("[UNK]", "[CLS]", "[SEP]", *special)
        trainer = trainers.WordPieceTrainer(
            vocab_size=120, special_tokens=list(special), show_progress=False
        )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False) for token in plain])
    return tokenizer


BPE = build()
WORDPIECE = build("wordpiece", plain=())
ADDED = {token.content: index for index, token in BPE.get_added_tokens_decoder().items()}
BARE = build(special=(), plain=())


def tokens(text: str, tokenizer: Tokenizer = BPE, **changes: Any) -> Tokens:
    return Tokens(ids=(tokenizer.token_to_id(text),), text=text, **changes)


def recipe(tokenizer: Tokenizer = BPE, **changes: Any) -> Recipe:
    plain = Recipe(
        family="test",
        encode="separate",
        prompt=(tokens("<s>", tokenizer), Text(text="Q: "), Slot(name="problem")),
        between=(Text(text=" "),),
        step=(Text(text="Step:"), Slot(name="step"), tokens("<extra_0>", tokenizer, read=-1)),
        split=Split(separator="\n\n"),
        logits=2,
        score=Score(kind="softmax", good=1),
        aggregates=("min",),
        aggregate="min",
        label_meaning="local",
    )
    return dataclasses.replace(plain, **changes)


def dump(tokenizer: Tokenizer = BPE, **changes: Any) -> bytes:
    return json.dumps({**json.loads(tokenizer.to_str()), **changes}).encode()


def encoder(made: Recipe | None = None, tokenizer: Tokenizer = BPE) -> RecipeEncoder:
    return RecipeEncoder(dump(tokenizer), made or recipe(tokenizer))


SEPARATE = encoder()
JOINT = encoder(recipe(encode="joint"))


def plain_ids(*texts: str) -> list[int]:
    """Each text on its own, by a tokenizer that never had an added token."""
    return [i for text in texts for i in BARE.encode(text, add_special_tokens=False).ids]


def expected(problem: str, steps: list[str], *, joint: bool) -> tuple[list[int], list[int]]:
    """The layout, written out by hand."""
    start, tag = ADDED["<s>"], ADDED["<extra_0>"]
    pieces = ["Q: ", problem]
    ids, reads = [start], []
    for index, step in enumerate(steps):
        pieces += [*([" "] if index else []), "Step:", step]
        ids += plain_ids("".join(pieces)) if joint else plain_ids(*pieces)
        reads.append(len(ids))
        ids.append(tag)
        pieces = []
    if not steps:
        ids += plain_ids("".join(pieces)) if joint else plain_ids(*pieces)
    return ids, reads


HOSTILE = st.lists(
    st.one_of(
        st.sampled_from([*SPECIAL, *PLAIN, "<extra_", "0>", "\n\n", "\r", "\x00", "🙂", "e\u0301"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    ),
    max_size=5,
).map("".join)


@pytest.mark.parametrize("joint", [False, True])
@given(problem=HOSTILE, steps=st.lists(HOSTILE, max_size=4))
@example(problem="", steps=["", "", ""])
@example(problem="<extra_0>" * 3, steps=["<extra_0>", "x = <extra_0>  <tool_call>", "</s>"])
@settings(max_examples=50, deadline=None)
def test_encode_is_the_layout_whatever_the_text(
    joint: bool, problem: str, steps: list[str]
) -> None:
    made = (JOINT if joint else SEPARATE).encode(problem, steps)
    ids, reads = expected(problem, steps, joint=joint)
    assert made.ids.tolist() == ids
    assert made.reads.tolist() == reads
    assert made.ids.dtype == made.reads.dtype == np.int64
    assert len(reads) == len(steps)
    assert reads == sorted(set(reads))
    # a step is read at its tag, and no tag stands anywhere else: nothing typed makes one
    assert np.flatnonzero(made.ids == ADDED["<extra_0>"]).tolist() == reads
    assert not np.isin(made.ids, [ADDED[t] for t in (*PLAIN, "</s>", "<|im_start|>")]).any()


def test_encode_joint_and_separate_differ_where_texts_meet() -> None:
    # so the tests above do tell the two apart
    joint, separate = JOINT.encode("apples", ["apples"]), SEPARATE.encode("apples", ["apples"])
    assert joint.ids.tolist() != separate.ids.tolist()


def test_encode_no_steps_is_the_prompt_alone() -> None:
    made = SEPARATE.encode(PROBLEM, [])
    assert made.ids.tolist() == [ADDED["<s>"], *plain_ids("Q: ", PROBLEM)]
    assert made.reads.shape == (0,)


@pytest.mark.parametrize("read", [0, 1, 2, -1, -2, -3])
def test_encode_reads_at_the_index_asked_for(read: int) -> None:
    part = Tokens(ids=tuple(plain_ids("(+)")), text="(+)", read=read)
    assert len(part.ids) == 3
    made = encoder(recipe(step=(Slot(name="step"), part, Text(text="!")))).encode(PROBLEM, STEPS)
    starts = [at - read % 3 for at in made.reads.tolist()]
    for start in starts[:-1]:
        assert tuple(made.ids[start : start + 3]) == part.ids
    assert len(made.ids) == made.reads[-1] + 1  # nothing after the last read is run


def test_encode_prefix_does_not_change_when_steps_follow() -> None:
    whole = JOINT.encode(PROBLEM, STEPS)
    for count in range(1, len(STEPS)):
        part = JOINT.encode(PROBLEM, STEPS[:count])
        assert part.ids.tolist() == whole.ids[: len(part.ids)].tolist()
        assert part.reads.tolist() == whole.reads[:count].tolist()


def test_encoded_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign"):
        SEPARATE.encode(PROBLEM, STEPS).ids = np.zeros(1, dtype=np.int64)  # type: ignore[misc]
    assert not hasattr(Encoded(ids=np.zeros(1, np.int64), reads=np.zeros(0, np.int64)), "__dict__")


def test_encode_a_very_long_text_is_not_cut() -> None:
    made = SEPARATE.encode("12 apples " * 20_000, ["x" * 100_000])
    assert len(made.ids) > 100_000


def test_encode_refuses_what_is_absurdly_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MAX_CHARACTERS", 10)
    assert len(SEPARATE.encode("12345", ["678", "90"]).reads) == 2
    with pytest.raises(InputError, match="have 11 characters together, more than the 10 that are"):
        SEPARATE.encode("12345", ["678", "901"])


# --- what is no text


@pytest.mark.parametrize("steps", ["one string", b"bytes", ""])
def test_encode_one_string_names_split(steps: Any) -> None:
    with pytest.raises(
        InputTypeError, match=r"steps must be a list of strings, got one (str|bytes); cut"
    ):
        SEPARATE.encode(PROBLEM, steps)
    with pytest.raises(TypeError, match=r"scorer\.split\(response\)"):
        SEPARATE.encode(PROBLEM, steps)


@pytest.mark.parametrize(
    "steps", [None, 5, {"a": 1}, {"a"}, (s for s in STEPS), iter(STEPS), np.array(STEPS)]
)
def test_encode_steps_that_are_no_sequence(steps: Any) -> None:
    with pytest.raises(InputTypeError, match=r"^steps must be a list of strings, got "):
        SEPARATE.encode(PROBLEM, steps)


@pytest.mark.parametrize("step", [None, 5, 1.5, b"x", ["x"], UserString("x")])
def test_encode_a_step_that_is_no_string(step: Any) -> None:
    got = type(step).__name__
    with pytest.raises(InputTypeError, match=rf"^steps\[1\] must be a string, got {got}$"):
        SEPARATE.encode(PROBLEM, ["fine", step])


@pytest.mark.parametrize("steps", [bytearray(b"ab"), range(3)])
def test_encode_a_sequence_of_integers(steps: Any) -> None:
    with pytest.raises(InputTypeError, match=r"^steps\[0\] must be a string, got int"):
        SEPARATE.encode(PROBLEM, steps)


@pytest.mark.parametrize("problem", [None, b"x", 5, ["x"]])
def test_encode_a_problem_that_is_no_string(problem: Any) -> None:
    with pytest.raises(InputTypeError, match=r"^problem must be a string, got "):
        SEPARATE.encode(problem, STEPS)


@pytest.mark.parametrize("steps", [tuple(STEPS), deque(STEPS)])
def test_encode_takes_any_sequence(steps: Any) -> None:
    assert SEPARATE.encode(PROBLEM, steps).ids.tolist() == (
        SEPARATE.encode(PROBLEM, STEPS).ids.tolist()
    )


@pytest.mark.parametrize("value", [0xD800, 0xDFFF])
def test_encode_lone_surrogates(value: int) -> None:
    bad = chr(value)
    code = f"U\\+{value:04X}"
    with pytest.raises(InputError, match=rf"^steps\[1\] holds a lone surrogate \({code}\) .* 2, "):
        SEPARATE.encode(PROBLEM, ["fine", f"ab{bad}"])
    with pytest.raises(InputError, match=f"^problem holds a lone surrogate .{code}.*decode it as"):
        SEPARATE.encode(bad, STEPS)


def test_check_text_and_steps_name_what_they_check() -> None:
    assert check_text("é", "x") == "é"
    assert check_steps(("a", ""), "x") == ["a", ""]
    with pytest.raises(InputTypeError, match=r"^candidates\[3\]\[0\] must be a string"):
        check_steps([1], "candidates[3]")


# --- the tokenizer


def test_tokenizer_never_truncates_or_pads() -> None:
    asks = dump(
        truncation={
            "direction": "Right",
            "max_length": 4,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        padding={
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<s>",
        },
    )
    itself = Tokenizer.from_str(asks.decode()).encode_batch([PROBLEM])[0]
    assert len(itself.ids) == 64
    assert sum(itself.attention_mask) == 4
    made = RecipeEncoder(asks, recipe()).encode(PROBLEM, STEPS)
    assert made.ids.tolist() == expected(PROBLEM, STEPS, joint=False)[0]


def test_tokenizer_post_processor_adds_nothing() -> None:
    adds = dump(
        post_processor={
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [ADDED["<s>"]], "tokens": ["<s>"]}},
        }
    )
    made = RecipeEncoder(adds, recipe()).encode(PROBLEM, STEPS)
    assert made.ids.tolist() == expected(PROBLEM, STEPS, joint=False)[0]


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"{}", b"null", b"\xff", b'{"model": {"type": "?"}}', b"[" * 99_999]
)
def test_tokenizer_that_cannot_be_read(raw: bytes) -> None:
    with pytest.raises(RecipeError, match=r"^tokenizer\.json cannot be read: "):
        RecipeEncoder(raw, recipe())


@pytest.mark.parametrize("index", [2**63, 2**70])
def test_tokenizer_with_an_added_token_beyond_64_bits(index: int) -> None:
    added = json.loads(BPE.to_str())["added_tokens"]
    beyond = {**added[0], "id": index, "content": "zz"}
    with pytest.raises(RecipeError, match=r"^tokenizer\.json cannot be read: "):
        RecipeEncoder(dump(added_tokens=[*added, beyond]), recipe())


@pytest.mark.parametrize(
    ("part", "found"),
    [
        (Tokens(ids=(5,), text="<s>"), ADDED["<s>"]),
        (Tokens(ids=(ADDED["<s>"], 5), text="<s>"), ADDED["<s>"]),
        (Tokens(ids=(ADDED["</s>"],), text="<s>"), ADDED["<s>"]),
        (Tokens(ids=(2**70,), text="<s>"), ADDED["<s>"]),
    ],
)
def test_spelling_that_the_tokenizer_does_not_share(part: Tokens, found: int) -> None:
    with pytest.raises(RecipeError, match=rf"expects '<s>' to be .* encodes it as \[{found}\]"):
        encoder(recipe(prompt=(part, Slot(name="problem"))))


@pytest.mark.parametrize("where", ["prompt", "between", "step"])
def test_spelling_is_checked_in_every_list(where: str) -> None:
    made = recipe()
    wrong = Tokens(ids=(0,), text="no such token")
    with pytest.raises(RecipeError, match="use the tokenizer the model was trained with"):
        encoder(dataclasses.replace(made, **{where: (*getattr(made, where), wrong)}))


def test_spell_added_tokens_count_and_the_longest_wins() -> None:
    tokenizer = build(special=("<s>", "<s><s>", "<extra_0>"), plain=())
    made = encoder(recipe(tokenizer), tokenizer)
    one, two = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("<s><s>")
    assert made.spell("<s><s><s>") == (two, one)
    assert made.spell("a<s>b") == (*plain_ids("a"), one, *plain_ids("b"))
    assert made.spell("") == ()


def test_spell_equals_the_whole_tokenizer() -> None:
    for text in ("<|im_start|>user\nx = 4</s>", "a  b", "<extra_0><extra_0>", "x = <s"):
        assert list(SEPARATE.spell(text)) == BPE.encode(text, add_special_tokens=False).ids


def test_spell_without_added_tokens() -> None:
    part = Tokens(ids=tuple(plain_ids("#")), text="#", read=0)
    bare = recipe(prompt=(Slot(name="problem"),), step=(Slot(name="step"), part))
    made = RecipeEncoder(dump(BARE), bare)
    assert list(made.spell("2x = 8")) == plain_ids("2x = 8")
    assert made.encode("2x", ["= 8"]).ids.tolist() == plain_ids("2x", "= 8", "#")


def test_wordpiece_may_yield_its_unknown_token() -> None:
    made = encoder(tokenizer=WORDPIECE).encode("apples 漢", ["[SEP] <extra_0> [UNK]"])
    unknown, tag = WORDPIECE.token_to_id("[UNK]"), WORDPIECE.token_to_id("<extra_0>")
    assert unknown in made.ids
    assert WORDPIECE.token_to_id("[SEP]") not in made.ids
    assert np.flatnonzero(made.ids == tag).tolist() == made.reads.tolist()


def test_unigram_may_yield_its_unknown_token() -> None:
    pieces = [("<s>", 0.0), ("<unk>", 0.0), ("<extra_0>", 0.0), ("a", -1.0), ("b", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, 1, False))
    tokenizer.add_special_tokens(["<s>", "<unk>", "<extra_0>"])
    part = (Slot(name="step"), Tokens(ids=(2,), text="<extra_0>", read=0))
    made = RecipeEncoder(dump(tokenizer), recipe(prompt=(Slot(name="problem"),), step=part))
    assert made.encode("a?b", ["b"]).ids.tolist()[:3] == [3, 1, 4]
    for record in (("I typed <extra_0>", ["a"]), ("a", ["a", "<s>b"])):
        with pytest.raises(
            InputError, match=r"the text spells the token '<(extra_0|s)>' \([20]\),"
        ):
            made.encode(*record)


def test_encode_refuses_text_that_yields_an_added_token_after_all() -> None:
    # a model whose own vocabulary holds the tag as a word: no copy without added tokens helps
    vocabulary = {"<unk>": 0, "<s>": 1, "<extra_0>": 2, "fine": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "<extra_0>", "<unk>"])
    part = (Slot(name="step"), Tokens(ids=(2,), text="<extra_0>", read=0))
    made = RecipeEncoder(dump(tokenizer), recipe(prompt=(Slot(name="problem"),), step=part))
    assert made.encode("fine", ["fine odd"]).ids.tolist() == [3, 3, 0, 2]
    with pytest.raises(InputError, match=r"the token '<extra_0>' \(2\), .*take it out of the prob"):
        made.encode("fine <extra_0>", ["fine"])


def test_encode_refuses_a_recipe_with_two_reads_for_a_step() -> None:
    part = tokens("<extra_0>", read=0)  # Recipe.from_dict refuses it; one made in code is here
    with pytest.raises(RecipeError, match="4 read positions for 2 steps"):
        encoder(recipe(step=(Slot(name="step"), part, part))).encode(PROBLEM, ["a", "b"])


# --- split


@pytest.mark.parametrize(
    ("response", "steps"),
    [
        ("", []),
        (" \n\n \n\n", []),
        ("one", ["one"]),
        ("one\n\ntwo\n\n\n\nthree\n\n", ["one", "two", "three"]),
        ("  one \n\n\ttwo\nlines\n", ["one", "two\nlines"]),
        ("one\r\n\r\ntwo", ["one\r\n\r\ntwo"]),
    ],
)
def test_split_cuts_and_drops_blank_pieces(response: str, steps: list[str]) -> None:
    assert SEPARATE.split(response) == steps


def test_split_may_keep_white_space() -> None:
    made = encoder(recipe(split=Split(separator="\n\n", strip=False)))
    assert made.split(" one\n\n \n\ntwo ") == [" one", "two "]


def test_split_refuses_what_is_no_text() -> None:
    with pytest.raises(InputTypeError, match=r"^response must be a string, got list"):
        SEPARATE.split(["a"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^response holds a lone surrogate"):
        SEPARATE.split("\ud800")


# --- transformers as judge


@pytest.fixture(scope="module")
def judge() -> Callable[[str], list[int]]:
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=build())
    return lambda text: list(fast(text, add_special_tokens=False)["input_ids"])


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2, max_size=4))
@settings(max_examples=50, deadline=None)
def test_encode_equals_transformers(judge: Callable[[str], list[int]], texts: list[str]) -> None:
    problem, *steps = (text.replace("  ", " _").replace("x = ", "y = ") for text in texts)
    ids = [*judge("<s>"), *judge("Q: "), *judge(problem)]
    for index, step in enumerate(steps):
        ids += [*(judge(" ") if index else []), *judge("Step:"), *judge(step), *judge("<extra_0>")]
    assert SEPARATE.encode(problem, steps).ids.tolist() == ids


def test_transformers_would_let_text_make_a_tag(judge: Callable[[str], list[int]]) -> None:
    # the reason for all of the above
    assert ADDED["<extra_0>"] in judge("I typed <extra_0>")


def test_encode_with_the_frozen_package(tiny_package: Path) -> None:
    data = json.loads((tiny_package / "prm_edge.json").read_text(encoding="utf-8"))
    made = RecipeEncoder(
        (tiny_package / "tokenizer.json").read_bytes(), Recipe.from_dict(data["recipe"])
    ).encode(PROBLEM, STEPS)
    newline = made.ids[made.reads].tolist()
    assert newline == [200, 200, 200]
    assert made.ids[0] == 0


def test_tokenizer_with_its_keys_in_another_order_is_the_same() -> None:
    data = json.loads(dump())
    turned = dict(sorted(data.items(), key=lambda item: item[0] == "added_tokens"))
    assert list(turned).index("added_tokens") > 4
    other = RecipeEncoder(json.dumps(turned).encode(), recipe())
    texts = ("Is <|end|> text?", ["<extra_0>", "2 + 2 = 4"])
    assert other.encode(*texts).ids.tolist() == encoder().encode(*texts).ids.tolist()


def test_tokenizer_with_added_tokens_twice_is_refused() -> None:
    raw = dump().decode()
    again = json.dumps(json.loads(raw)["added_tokens"])
    doubled = f'{raw.rstrip()[:-1]}, "added_tokens": {again}}}'
    with pytest.raises(RecipeError, match=r"tokenizer\.json"):
        RecipeEncoder(doubled.encode(), recipe())


# --- sections, trimmed runs, and tags


def ids_of(*texts: str) -> list[int]:
    return [i for text in texts for i in BARE.encode(text, add_special_tokens=False).ids]


def laid_out(encode: str, **changes: Any) -> RecipeEncoder:
    newline = BARE.token_to_id("Ċ")
    made = recipe(
        BARE,
        encode=encode,
        prompt=(Slot(name="problem"), Text(text=" ")),
        between=(),
        step=(Slot(name="step"), Tokens(ids=(newline,), text="\n", read=0)),
    )
    return RecipeEncoder(BARE.to_str().encode(), dataclasses.replace(made, **changes))


def test_encode_sections_joins_the_prompt_but_not_the_first_step() -> None:
    encoded = laid_out("sections").encode("So x", ["= 4.", "x"])
    assert encoded.ids.tolist() == ids_of("So x ", "= 4.", "\n", "x", "\n")
    joint = laid_out("joint").encode("So x", ["= 4.", "x"])
    assert joint.ids.tolist() == ids_of("So x = 4.", "\n", "x", "\n")
    assert joint.ids.tolist() != encoded.ids.tolist()


def test_encode_sections_joins_within_each_list() -> None:
    newline = Tokens(ids=(BARE.token_to_id("Ċ"),), text="\n", read=0)
    encoder = laid_out(
        "sections",
        between=(Text(text="So"), Text(text=" x")),
        step=(Text(text=" = "), Slot(name="step"), newline, Text(text="apples")),
    )
    encoded = encoder.encode("x", ["1", "2"])
    expected = ids_of("x ", " = 1", "\n", "apples", "So x", " = 2", "\n")
    assert encoded.ids.tolist() == expected


def test_encode_trimmed_strips_each_run_as_a_whole() -> None:
    step = (Slot(name="step", strip=True), *laid_out("joint").recipe.step[1:])
    encoder = laid_out("trimmed", step=step)
    encoded = encoder.encode("  So x ", [" = 4. ", "\tx\n"])
    assert encoded.ids.tolist() == ids_of("So x  = 4.", "\n", "x", "\n")
    assert encoder.encode("So", [""]).ids.tolist() == ids_of("So", "\n")
    assert encoder.encode("", ["x"]).ids.tolist() == ids_of("x", "\n")
    assert encoder.encode(" ", [" "]).ids.tolist() == ids_of("\n")


def test_slot_strip_leaves_inner_whitespace() -> None:
    step = (Slot(name="step", strip=True), *laid_out("joint").recipe.step[1:])
    encoded = laid_out("joint", step=step).encode("x ", ["\n a  b \u3000"])
    assert encoded.ids.tolist() == ids_of("x  a  b", "\n")


def tagged(tag: str = " x", **changes: Any) -> RecipeEncoder:
    index = ids_of(f"y{tag}")[-1]
    step = (Slot(name="step"), Tag(text=tag, id=changes.pop("id", index)))
    return laid_out("joint", between=(Text(text="\n"),), step=step, **changes)


def test_tag_is_encoded_with_its_neighbours_and_read_there() -> None:
    encoder = tagged()
    encoded = encoder.encode("Solve", ["2", "apples"])
    assert encoded.ids.tolist() == ids_of("Solve 2 x\napples x")
    tag = encoder.recipe.step[-1].to_dict()["id"]
    assert encoded.ids[encoded.reads].tolist() == [tag] * 2
    assert encoder.encode("Solve", []).reads.tolist() == []


@pytest.mark.parametrize("steps", [["2 x 3"], ["x", "2"], ["1 x", "2"]])
def test_tag_that_is_spelled_is_refused(steps: list[str]) -> None:
    encoder = tagged()
    tag = encoder.recipe.step[-1].to_dict()["id"]
    with pytest.raises(InputError, match=rf"the tag ' x' after each step is token {tag}, found"):
        encoder.encode("Solve", steps)


def test_tag_of_another_tokenizer_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"expects ' x' to end as token 7, but this tokenizer"):
        tagged(id=7)


@given(st.text("x \n2=ap.", max_size=8), st.lists(st.text("x \n2=ap.", max_size=6), max_size=4))
@settings(max_examples=200, deadline=None)
def test_tag_reads_every_step_or_refuses(problem: str, steps: list[str]) -> None:
    encoder = tagged()
    try:
        encoded = encoder.encode(problem, steps)
    except InputError:
        return
    tag = encoder.recipe.step[-1].to_dict()["id"]
    assert len(encoded.reads) == len(steps)
    assert [i for i, t in enumerate(encoded.ids) if t == tag] == encoded.reads.tolist()


@pytest.mark.parametrize("encode", ["sections", "trimmed"])
@given(problem=st.text(max_size=12), steps=st.lists(st.text(max_size=12), max_size=4))
@settings(max_examples=100, deadline=None)
def test_encode_reads_every_step(encode: str, problem: str, steps: list[str]) -> None:
    encoded = laid_out(encode).encode(problem, steps)
    newline = BARE.token_to_id("Ċ")
    assert len(encoded.reads) == len(steps)
    assert encoded.ids[encoded.reads].tolist() == [newline] * len(steps)


# --- read at a step's own tokens, at the first of a tag's tokens, and once for a whole solution

AT_STEP = encoder(
    recipe(
        encode="sections",
        between=(),
        step=(Slot(name="step", read=-1),),
        split=Split(separator="\n"),
    )
)
BEFORE_END = encoder(
    recipe(
        encode="sections",
        between=(),
        step=(Slot(name="step", read=-2),),
        split=Split(separator="\n"),
    )
)
WHOLE = encoder(
    recipe(
        encode="joint",
        prompt=(Slot(name="problem"),),
        between=(),
        step=(Slot(name="step", read=-1),),
        split=Split(separator=None),
    )
)
NEWLINES = BARE.encode("\n", add_special_tokens=False).ids
PAIR = encoder(
    recipe(
        encode="joint",
        prompt=(Text(text="Q\n\n"), Slot(name="problem"), Text(text="\n\n")),
        between=(),
        step=(Slot(name="step", strip=True), Tag(text="\n\n", id=NEWLINES[0], then=(NEWLINES[0],))),
    )
)


def test_step_is_read_at_its_own_tokens() -> None:
    start = [ADDED["<s>"], *plain_ids("Q: " + PROBLEM)]
    steps = ["Subtract 3", "x", "So x = 4."]
    pieces = [plain_ids(step) for step in steps]
    ends = np.cumsum([len(start), *map(len, pieces)])[1:]
    last = AT_STEP.encode(PROBLEM, steps)
    assert last.ids.tolist() == [*start, *(i for piece in pieces for i in piece)]
    assert last.reads.tolist() == (ends - 1).tolist()
    # "x" is one token, so that its score is read at the last token of the step before
    assert len(pieces[1]) == 1
    before = BEFORE_END.encode(PROBLEM, steps)
    assert before.reads.tolist() == (ends - 2).tolist()
    assert before.ids.tolist() == last.ids.tolist()[:-1]


@pytest.mark.parametrize("made", [AT_STEP, BEFORE_END])
@pytest.mark.parametrize("steps", [[""], ["a", ""], ["", "a"]])
def test_step_without_tokens_is_refused(made: RecipeEncoder, steps: list[str]) -> None:
    with pytest.raises(InputError, match="a step has no token at which its score could be read"):
        made.encode(PROBLEM, steps)


def test_step_that_would_be_read_before_the_record_is_refused() -> None:
    bare = dataclasses.replace(BEFORE_END.recipe, prompt=(Slot(name="problem"),))
    with pytest.raises(InputError, match="a step has no token at which its score could be read"):
        encoder(bare).encode("", ["x"])


def test_step_read_at_its_end_is_incremental_and_before_it_is_not() -> None:
    assert (AT_STEP.incremental, BEFORE_END.incremental) == (True, False)
    pieces = [AT_STEP.encode_prompt(PROBLEM), AT_STEP.encode_step("a b", problem=PROBLEM)]
    pieces.append(AT_STEP.encode_step("c"))
    whole = AT_STEP.encode(PROBLEM, ["a b", "c"])
    assert np.concatenate(pieces).tolist() == whole.ids.tolist()
    with pytest.raises(InputError, match="a step has no token at which its score could be read"):
        AT_STEP.encode_step("")


def test_whole_solution_is_one_step() -> None:
    encoded = WHOLE.encode("How much?", ["It is\n\n4"])
    assert encoded.ids.tolist() == plain_ids("How much?It is\n\n4")
    assert encoded.reads.tolist() == [len(encoded.ids) - 1]
    assert WHOLE.split("one\n\ntwo ") == ["one\n\ntwo"]
    assert WHOLE.split(" \n") == []
    assert len(WHOLE.encode("How much?", []).reads) == 0
    with pytest.raises(InputError, match="scores a whole solution, given as one step; got 3"):
        WHOLE.encode("How much?", ["a", "b", "c"])
    assert WHOLE.encode_step("4", problem="x = ").tolist() == plain_ids("x = 4")
    with pytest.raises(InputError, match="scores a whole solution, given as one step; got 2"):
        WHOLE.encode_step("and more")


def test_tag_of_two_tokens_is_read_at_its_first() -> None:
    steps = ["one\nline", " two ", "", "\nfour\n"]
    encoded = PAIR.encode("What\n\nnow?", steps)
    text = "Q\n\nWhat\n\nnow?\n\none\nline\n\ntwo\n\n\n\nfour\n\n"
    assert [*encoded.ids.tolist(), NEWLINES[0]] == plain_ids(text)
    ends = (23, 28, 30, 36)
    assert [text[at : at + 2] for at in ends] == ["\n\n"] * 4
    assert encoded.reads.tolist() == [len(plain_ids(text[:at])) for at in ends]
    for step in ("a\n\nb", "a\n\n\nb"):
        with pytest.raises(InputError, match=r"is token \d+, \d+, found 2 times where 1 belong"):
            PAIR.encode("What?", [step])


def test_tag_of_two_tokens_that_this_tokenizer_has_not() -> None:
    other = dataclasses.replace(
        PAIR.recipe, step=(Slot(name="step"), Tag(text="\n\n", id=1, then=(2,)))
    )
    with pytest.raises(RecipeError, match=r"expects '\\n\\n' to end as token 1, 2, but this"):
        encoder(other)


@given(st.text(max_size=8), st.lists(st.text(st.sampled_from("\n ab=1"), max_size=8), max_size=4))
@settings(max_examples=100, deadline=None)
def test_every_step_is_read_or_the_record_refused(problem: str, steps: list[str]) -> None:
    for made in (AT_STEP, BEFORE_END, PAIR):
        try:
            encoded = made.encode(problem, steps)
        except InputError:
            continue
        reads = encoded.reads.tolist()
        assert len(reads) == len(steps)
        assert reads == sorted({*reads})
        assert not reads or (reads[0] >= 0 and reads[-1] == len(encoded.ids) - 1)
