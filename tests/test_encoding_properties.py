"""What must hold of every encoding, over kinds of tokenizers and texts nobody thought of.

Tokenizers are tiny and trained here; transformers' PreTrainedTokenizerFast is the judge of ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from prm_edge_runtime.encoding import RecipeEncoder
from prm_edge_runtime.recipe import Recipe, Score, Slot, Split, Tokens

CORPUS: Final = [
    "Ana has 12 apples. She gives 5 away, so 12 - 5 = 7 are left.\n",
    "  Let x = 3.5; then x² = 12.25 and 2x + 1 = 8.\n\n",
    "Größe, здравствуй, 数学は楽しい, שלום — it's fine!",
]
# whitespace, prefixes of one another, and every flag that makes a token swallow its surroundings
ADDED: Final = (
    AddedToken("<s>", special=True),
    AddedToken("<tag>", special=True, lstrip=True, rstrip=True),
    AddedToken("<tag>>", special=False),
    AddedToken("tag", special=False, single_word=True),
    AddedToken("  ", special=False),
    AddedToken("éé", special=False, normalized=True),
    AddedToken("=7", special=True, normalized=True),
)
SPELLINGS: Final = tuple(token.content for token in ADDED)
SEPARATOR: Final = "\n"


def byte_level() -> Tokenizer:
    """Like Qwen2's and Llama 3's."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"\p{N}| ?\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+|[^\s\p{L}\p{N}]+"), "isolated"
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def sentencepiece() -> Tokenizer:
    """Like Llama 2's and Mistral's: "▁" put first, unknown characters as bytes."""
    learned = Tokenizer(models.BPE(unk_token="<unk>"))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    learned.normalizer = normalizers.Sequence(steps)
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learned.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False),
    )
    learned.model.byte_fallback = True  # type: ignore[attr-defined]
    learned.model.fuse_unk = True  # type: ignore[attr-defined]
    # a byte is an ordinary entry of the vocabulary there, not an added token
    bare = Tokenizer(learned.model)
    bare.normalizer = normalizers.Sequence(steps)
    return bare


def unigram() -> Tokenizer:
    """Like the encoders made with SentencePiece."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        ),
    )
    return made


def wordpiece() -> Tokenizer:
    """Like BERT's."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    made.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(
        CORPUS,
        trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]"], show_progress=False),
    )
    return made


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of tokenizer: our encoder, and transformers' tokenizer of the same file."""

    encoder: RecipeEncoder
    judge: Any
    tag: tuple[int, ...]
    added: frozenset[int]

    def reference(self, problem: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
        ids = self.plain(problem)
        reads = []
        for step in steps:
            ids += [*self.plain(step), *self.tag]
            reads.append(len(ids) - 1)
        return ids, reads

    def plain(self, text: str) -> list[int]:
        return list(self.judge(text, add_special_tokens=False)["input_ids"])


def case(made: Tokenizer) -> Case:
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    made.add_special_tokens([token for token in ADDED if token.special])
    made.add_tokens([token for token in ADDED if not token.special])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    # BERT drops newlines: its separator is a token of its own
    text = SEPARATOR if made.encode(SEPARATOR, add_special_tokens=False).ids else "<s>"
    tag = tuple(made.encode(text, add_special_tokens=False).ids)
    recipe = Recipe(
        family="test",
        encode="separate",
        prompt=(Slot(name="problem"),),
        between=(),
        step=(Slot(name="step"), Tokens(ids=tag, text=text, read=-1)),
        split=Split(separator="\n"),
        logits=2,
        score=Score(kind="softmax", good=1),
        aggregates=("min",),
        aggregate="min",
        label_meaning="local",
    )
    return Case(
        encoder=RecipeEncoder(made.to_str().encode(), recipe),
        judge=transformers.PreTrainedTokenizerFast(tokenizer_object=made),
        tag=tag,
        added=frozenset(made.token_to_id(token.content) for token in ADDED),
    )


@pytest.fixture(scope="module", params=[byte_level, sentencepiece, unigram, wordpiece])
def kind(request: pytest.FixtureRequest) -> Case:
    return case(request.param())


ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ODD = ("<", ">", "ta", "g ", "é", " ", "\n", "e\u0301", "\u00a0", "12", "▁", "x")
ORDINARY = st.lists(st.one_of(st.sampled_from(ODD), ANY), max_size=6).map("".join)
HOSTILE = st.lists(st.one_of(st.sampled_from([*SPELLINGS, *ODD]), ANY), max_size=6).map("".join)
STEPS = st.lists(HOSTILE, max_size=4)
FEW = settings(max_examples=40, deadline=None)


@given(problem=ORDINARY, steps=st.lists(ORDINARY, max_size=4))
@example(problem="", steps=["", " ", "\n"])
@example(problem="Let x = 3", steps=[" x² = 9 ", "\nso\n\n", "\u2028"])
@FEW
def test_ids_are_those_of_transformers(kind: Case, problem: str, steps: list[str]) -> None:
    # where transformers finds an added token in the text, the two differ on purpose
    assume(not any(kind.added & set(kind.plain(text)) for text in (problem, *steps)))
    encoded = kind.encoder.encode(problem, steps)
    assert (encoded.ids.tolist(), encoded.reads.tolist()) == kind.reference(problem, steps)


@given(problem=HOSTILE, steps=STEPS)
@example(problem="<s><tag><tag>>", steps=["a <tag> b", " tag ", "=7", "éé e\u0301e\u0301", "   "])
@FEW
def test_text_never_becomes_an_added_token(kind: Case, problem: str, steps: list[str]) -> None:
    encoded = kind.encoder.encode(problem, steps)
    ids, width = encoded.ids.tolist(), len(kind.tag)
    inside = set(range(len(ids)))
    for read in encoded.reads.tolist():
        assert ids[read - width + 1 : read + 1] == list(kind.tag)
        inside -= set(range(read - width + 1, read + 1))
    assert not kind.added & {ids[position] for position in inside}


@given(problem=HOSTILE, steps=STEPS)
@FEW
def test_every_step_is_read_once_and_in_order(kind: Case, problem: str, steps: list[str]) -> None:
    encoded = kind.encoder.encode(problem, steps)
    reads = encoded.reads.tolist()
    assert len(reads) == len(steps)
    assert reads == sorted(set(reads))
    assert not reads or reads[-1] == len(encoded.ids) - 1


@given(problem=HOSTILE, steps=STEPS, later=STEPS)
@FEW
def test_steps_that_follow_change_nothing_before(
    kind: Case, problem: str, steps: list[str], later: list[str]
) -> None:
    alone = kind.encoder.encode(problem, steps)
    longer = kind.encoder.encode(problem, [*steps, *later])
    assert longer.ids[: len(alone.ids)].tolist() == alone.ids.tolist()
    assert longer.reads[: len(steps)].tolist() == alone.reads.tolist()


def test_transformers_lets_text_become_added_tokens(kind: Case) -> None:
    # the reason for all of the above, and proof that the texts are hostile
    assert kind.added & set(kind.plain("a <tag> b"))
