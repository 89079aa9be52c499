"""The families of PRMs: how each is recognised, and the recipe it was trained with.

A new family is one row of :data:`FAMILIES` and one golden. Sources of templates and formulas
stand beside each builder. The recipe is checked against transformers' own tokenizer and template
on real texts before a package is written (:mod:`.tokenization`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prm_edge_runtime.errors import CheckpointError, UnsupportedError
from prm_edge_runtime.recipe import (
    Part,
    Recipe,
    Score,
    Slot,
    Split,
    Text,
    Tokens,
    allowed_aggregates,
    validate,
)

from .tokenizer_files import TokenizerFiles

# The system sentence of the Qwen2.5-Math-PRM model cards (Qwen/Qwen2.5-Math-PRM-7B)
QWEN_SYSTEM: Final = "Please reason step by step, and put your final answer within \\boxed{}."
QWEN_TAG: Final = "<extra_0>"
ASK: Final = "ask"

GOOD_WORDS: Final = frozenset(
    ["+", "1", "accept", "correct", "good", "label_1", "positive", "right", "true", "valid"]
)
BAD_WORDS: Final = frozenset(
    ["-", "0", "bad", "error", "false", "incorrect", "invalid", "label_0", "negative", "wrong"]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a recipe is built from: the tokenizer, and what was asked for or found out."""

    files: TokenizerFiles
    tokenizer: Any  # transformers' tokenizer, the reference
    separator: str | None
    good: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One row: the ``heads`` it may have, its separator, and its two functions.

    ``detected``: recognised by its head; the others are named with ``--recipe``.
    ``separator``: None when the family has none, :data:`ASK` when every checkpoint may have its
    own, else the published one. ``reference`` encodes with transformers alone, as the family was
    trained: (tokenizer, recipe, problem, steps) -> (ids, read positions).
    """

    name: str
    title: str
    heads: tuple[str, ...]
    detected: bool
    separator: str | None
    build: Callable[[Request], Recipe]
    reference: Callable[[Any, Recipe, str, Sequence[str]], tuple[list[int], list[int]]]


def good_index(config: Mapping[str, Any], labels: int, asked: int | None) -> int:
    """Which logit means a good step: 1 unless the checkpoint's label names say otherwise.

    Raises:
        CheckpointError: when the label names are not what PRMTrainer writes and nobody said.
    """
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


def _encode_plain(tokenizer: Any, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]


# --- TRL's PRMTrainer (huggingface/trl, trl/experimental/prm/prm_trainer.py, tokenize_row):
# prompt and each completion encoded on their own without special tokens, the separator's ids
# appended to each completion, BOS first if the tokenizer has one; the label sits on the last id
# of each separator, and class 1 is good.
def _trl(request: Request) -> Recipe:
    return _separated(request, family="trl", aggregate="min")


# --- PURE (jinachris/PURE-PRM-7B; github.com/CJReinforce/PURE): TRL with "\n" appended, responses
# split on blank lines, reward p(good) - p(bad), credit by soft minimum.
def _pure(request: Request) -> Recipe:
    return _separated(
        request,
        family="pure",
        aggregate="softmin",
        score=Score(kind="difference", good=request.good, bad=1 - request.good),
        split="\n\n",
    )


def _separated(
    request: Request,
    *,
    family: str,
    aggregate: str,
    score: Score | None = None,
    split: str | None = None,
) -> Recipe:
    separator = request.separator or ""
    ids = tuple(_encode_plain(request.tokenizer, separator))
    if not ids:
        raise CheckpointError(f"the separator {separator!r} is no token of this tokenizer")
    prompt: list[Part] = [Slot(name="problem")]
    bos = request.tokenizer.bos_token_id
    if bos is not None:
        prompt.insert(0, Tokens(ids=(int(bos),), text=str(request.tokenizer.bos_token)))
    score = score or Score(kind="softmax", good=request.good)
    return _checked(
        Recipe(
            family=family,
            encode="separate",
            prompt=tuple(prompt),
            between=(),
            step=(Slot(name="step"), Tokens(ids=ids, text=separator, read=-1)),
            split=Split(separator=split or separator),
            logits=2,
            score=score,
            aggregates=allowed_aggregates(score),
            aggregate=aggregate,
            label_meaning="until_first_error",
        )
    )


def _trl_reference(
    tokenizer: Any, recipe: Recipe, problem: str, steps: Sequence[str]
) -> tuple[list[int], list[int]]:
    tag = next(p for p in recipe.step if isinstance(p, Tokens))
    separator = _encode_plain(tokenizer, tag.text)
    ids = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    ids += _encode_plain(tokenizer, problem)
    reads = []
    for step in steps:
        ids += _encode_plain(tokenizer, step) + separator
        reads.append(len(ids) - 1)
    return ids, reads


# --- Qwen2.5-Math-PRM 7B, 72B and 7B-PRM800K (model cards): the chat template with the system
# sentence above, steps joined and ended by <extra_0>, encoded once, read at each <extra_0>.
def _qwen(request: Request) -> Recipe:
    return _chat(request, family="qwen2.5-math-prm", system=QWEN_SYSTEM)


# --- ReasonFlux-PRM-7B (Gen-Verse README): the same, but no system message is passed, so that the
# checkpoint's template inserts its own.
def _reasonflux(request: Request) -> Recipe:
    return _chat(request, family="reasonflux-prm", system=None)


_PROBLEM_MARK: Final = "\ue000problem\ue001"
_STEPS_MARK: Final = "\ue000steps\ue001"


def _messages(system: str | None, problem: str, answer: str) -> list[dict[str, str]]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return [
        *head,
        {"role": "user", "content": problem},
        {"role": "assistant", "content": answer},
    ]


def _render(tokenizer: Any, system: str | None, problem: str, answer: str) -> str:
    try:
        rendered = tokenizer.apply_chat_template(
            _messages(system, problem, answer), tokenize=False, add_generation_prompt=False
        )
    except Exception as error:  # jinja2 and transformers raise many unrelated types
        raise CheckpointError(f"the checkpoint's chat template cannot be used: {error}") from error
    return str(rendered)


def _chat(request: Request, *, family: str, system: str | None) -> Recipe:
    if request.files.chat_template is None:
        raise CheckpointError(
            f"family {family} needs the checkpoint's chat template, and neither "
            "tokenizer_config.json nor chat_template.jinja has one"
        )
    tag = request.files.added.get(QWEN_TAG)
    if tag is None:
        raise CheckpointError(
            f"the tokenizer has no token {QWEN_TAG!r} (a stock Qwen2.5 tokenizer names that id "
            "<|quad_end|>); use the tokenizer of the PRM's own repository"
        )
    rendered = _render(request.tokenizer, system, _PROBLEM_MARK, _STEPS_MARK)
    opening, _, _ = rendered.partition(_STEPS_MARK)
    if opening.count(_PROBLEM_MARK) != 1 or _STEPS_MARK not in rendered:
        raise CheckpointError("the chat template does not insert the question and answer as given")
    score = Score(kind="softmax", good=request.good)
    return _checked(
        Recipe(
            family=family,
            encode="joint",
            prompt=_template_parts(opening, request.files.added),
            between=(),
            step=(Slot(name="step"), Tokens(ids=(tag,), text=QWEN_TAG, read=0)),
            split=Split(separator="\n\n"),
            logits=2,
            score=score,
            aggregates=allowed_aggregates(score),
            aggregate="last",
            label_meaning="until_first_error",
        )
    )


def _template_parts(opening: str, added: Mapping[str, int]) -> tuple[Part, ...]:
    """Cut a rendered template into added tokens, literal text and the problem's slot."""
    longest_first = sorted([*added, _PROBLEM_MARK], key=len, reverse=True)
    pieces = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", opening)
    parts: list[Part] = []
    for piece in filter(None, pieces):
        if piece == _PROBLEM_MARK:
            parts.append(Slot(name="problem"))
        elif piece in added:
            parts.append(Tokens(ids=(added[piece],), text=piece))
        else:
            parts.append(Text(text=piece))
    return tuple(parts)


def _chat_reference(
    system: str | None,
) -> Callable[[Any, Recipe, str, Sequence[str]], tuple[list[int], list[int]]]:
    def encode(
        tokenizer: Any, recipe: Recipe, problem: str, steps: Sequence[str]
    ) -> tuple[list[int], list[int]]:
        answer = "".join(step + QWEN_TAG for step in steps)
        ids = [int(i) for i in tokenizer(_render(tokenizer, system, problem, answer))["input_ids"]]
        tag = tokenizer.convert_tokens_to_ids(QWEN_TAG)
        reads = [position for position, token in enumerate(ids) if token == tag]
        return ids[: reads[-1] + 1] if reads else ids, reads

    return encode


def _checked(recipe: Recipe) -> Recipe:
    validate(recipe)
    return recipe


FAMILIES: Final[dict[str, Family]] = {
    family.name: family
    for family in (
        Family(
            name="trl",
            title="TRL PRMTrainer checkpoint",
            heads=("linear", "classifier"),
            detected=True,
            separator=ASK,
            build=_trl,
            reference=_trl_reference,
        ),
        Family(
            name="pure",
            title="PURE (TRL checkpoint scored by p(good) - p(bad))",
            heads=("linear",),
            detected=False,
            separator="\n",
            build=_pure,
            reference=_trl_reference,
        ),
        Family(
            name="qwen2.5-math-prm",
            title="Qwen2.5-Math-PRM",
            heads=("mlp",),
            detected=True,
            separator=None,
            build=_qwen,
            reference=_chat_reference(QWEN_SYSTEM),
        ),
        Family(
            name="reasonflux-prm",
            title="ReasonFlux-PRM (Qwen2.5-Math-PRM head, the template's own system message)",
            heads=("mlp",),
            detected=False,
            separator=None,
            build=_reasonflux,
            reference=_chat_reference(None),
        ),
    )
}
