"""What a family of PRMs is made of, and which of its labels is the good one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from prm_edge_runtime.errors import CheckpointError, UnsupportedError
from prm_edge_runtime.recipe import Part, Recipe, Tokens, validate

from ..tokenizer_files import TokenizerFiles

ASK: Final = "ask"

GOOD_WORDS: Final = frozenset(
    ["+", "1", "accept", "correct", "good", "label_1", "positive", "right", "true", "valid"]
)
BAD_WORDS: Final = frozenset(
    ["-", "0", "bad", "error", "false", "incorrect", "invalid", "label_0", "negative", "wrong"]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a recipe is built from: the tokenizer, and what was asked for or found out.

    ``logits``: how many numbers the head gives. ``config``: config.json, which nobody trusts.
    """

    files: TokenizerFiles
    tokenizer: Any  # transformers' tokenizer, the reference
    separator: str | None
    good: int
    logits: int = 2
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One row: the ``heads`` it may have, its separator, and its two functions.

    ``detected``: recognised by its head; the others are named with ``--recipe``. ``model_types``:
    the only ones it is published for, empty for any. ``marks``: added tokens that it has, and other
    families with the same head do not. ``good``: the logit of a good step, None when the
    checkpoint's label names say. ``verdicts``: the words (or ids) whose rows of the vocabulary are
    the head. ``max_tokens``: where its authors cut every text. ``separator``: None if it has none,
    :data:`ASK` when every checkpoint may have its own, else the published one. ``reference``
    encodes with transformers alone, as the family was trained:
    (tokenizer, recipe, problem, steps) -> (ids, read positions).
    """

    name: str
    title: str
    heads: tuple[str, ...]
    detected: bool
    separator: str | None
    build: Callable[[Request], Recipe]
    reference: Callable[[Any, Recipe, str, Sequence[str]], tuple[list[int], list[int]]]
    model_types: tuple[str, ...] = ()
    good: int | None = None
    verdicts: tuple[str | int, ...] = ()
    marks: tuple[str, ...] = ()
    max_tokens: int | None = None


def good_index(family: Family, config: Mapping[str, Any], labels: int, asked: int | None) -> int:
    """Which logit means a good step: the family's, else 1 unless label names say otherwise.

    Raises:
        CheckpointError: when the label names are not what PRMTrainer writes and nobody said.
    """
    if family.good is not None:
        if asked is not None:
            raise CheckpointError(
                f"recipe {family.name!r} says itself which number is the good one; leave "
                "--good-label out"
            )
        _check_names(family, _label_names(config))
        return family.good
    if labels != 2:
        raise UnsupportedError(f"the head has {labels} labels; this recipe needs 2: bad and good")
    if asked is not None:
        if asked not in (0, 1):
            raise CheckpointError(f"--good-label must be 0 or 1, got {asked}")
        return asked
    names = _label_names(config)
    if not names:
        return 1
    good = {index for index, name in names.items() if name in GOOD_WORDS}
    bad = {index for index, name in names.items() if name in BAD_WORDS}
    if good <= {1} and bad <= {0} and (good or bad):
        return 1
    raise CheckpointError(
        f"config.json names the labels {dict(sorted(names.items()))}, which does not say plainly "
        "that 1 is the good one; pass --good-label 0 or --good-label 1"
    )


def _check_names(family: Family, names: Mapping[int, str]) -> None:
    """Refuse label names that contradict a recipe which says itself what is good."""
    telling = {i: name for i, name in names.items() if not name.startswith("label_")}
    wrong = [i for i, name in telling.items() if name in (GOOD_WORDS, BAD_WORDS)[i == family.good]]
    if wrong:
        raise CheckpointError(
            f"config.json names the labels {dict(sorted(names.items()))}, the recipe "
            f"{family.name!r} takes number {family.good} for the good one; correct one of them"
        )


def _label_names(config: Mapping[str, Any]) -> dict[int, str]:
    """Label names by index from id2label and label2id; both, so that they must agree."""
    names: dict[int, str] = {}
    pairs: list[tuple[object, object]] = []
    for key, flip in (("id2label", False), ("label2id", True)):
        mapping = config.get(key)
        if isinstance(mapping, dict):
            pairs.extend((v, k) if flip else (k, v) for k, v in mapping.items())
    for index, name in pairs:
        try:
            number = int(str(index))
        except ValueError:
            raise CheckpointError(f"config.json: label {name!r} has the index {index!r}") from None
        text = str(name).strip().lower()
        if names.setdefault(number, text) != text:
            raise CheckpointError(
                f"config.json: id2label and label2id disagree on label {number} "
                f"({names[number]!r} and {text!r}); pass --good-label 0 or --good-label 1"
            )
    return names


def encode_plain(tokenizer: Any, text: str) -> list[int]:
    """Encode text alone, without special tokens around it."""
    return [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]


def leading(request: Request) -> tuple[Part, ...]:
    """What the tokenizer itself puts before a text: its bos_token, or nothing.

    Raises:
        CheckpointError: when it puts anything else around a text.
    """
    plain = encode_plain(request.tokenizer, "x")
    whole = [int(i) for i in request.tokenizer("x")["input_ids"]]
    if whole == plain:
        return ()
    bos = request.tokenizer.bos_token_id
    if bos is None or whole != [int(bos), *plain]:
        raise CheckpointError(
            f"the tokenizer encodes 'x' as {whole}, so it adds more to a text than a bos_token at "
            "its start, which no text of this family has; use the PRM's own tokenizer"
        )
    return (Tokens(ids=(int(bos),), text=str(request.tokenizer.bos_token)),)


def required_bos(request: Request) -> tuple[Part, ...]:
    """The bos_token, for families whose texts begin with it whatever the tokenizer adds.

    Raises:
        CheckpointError: when the tokenizer has none.
    """
    index = request.tokenizer.bos_token_id
    if index is None:
        raise CheckpointError(
            "the tokenizer has no bos_token, with which this family's texts begin; use the "
            "tokenizer of the PRM's own repository"
        )
    return (Tokens(ids=(int(index),), text=str(request.tokenizer.bos_token)),)


def checked(recipe: Recipe) -> Recipe:
    """Return the recipe, once it is known to be sane."""
    validate(recipe)
    return recipe
