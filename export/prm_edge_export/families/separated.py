"""Families that encode the prompt, each step and the separator on their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prm_edge_runtime.errors import CheckpointError
from prm_edge_runtime.recipe import (
    Part,
    Recipe,
    Score,
    Slot,
    Split,
    Tokens,
    allowed_aggregates,
)

from .family import Request, checked, encode_plain


# --- TRL's PRMTrainer (huggingface/trl, trl/experimental/prm/prm_trainer.py, tokenize_row):
# prompt and each completion encoded on their own without special tokens, the separator's ids
# appended to each completion, BOS first if the tokenizer has one; the label sits on the last id
# of each separator, and class 1 is good.
def build_trl(request: Request) -> Recipe:
    return _separated(request, family="trl", aggregate="min")


# --- PURE (jinachris/PURE-PRM-7B; github.com/CJReinforce/PURE): TRL with "\n" appended, responses
# split on blank lines, reward p(good) - p(bad), credit by soft minimum.
def build_pure(request: Request) -> Recipe:
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
    ids = tuple(encode_plain(request.tokenizer, separator))
    if not ids:
        raise CheckpointError(f"the separator {separator!r} is no token of this tokenizer")
    prompt: list[Part] = [Slot(name="problem")]
    bos = request.tokenizer.bos_token_id
    if bos is not None:
        prompt.insert(0, Tokens(ids=(int(bos),), text=str(request.tokenizer.bos_token)))
    score = score or Score(kind="softmax", good=request.good)
    return checked(
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


def trl_reference(
    tokenizer: Any, recipe: Recipe, problem: str, steps: Sequence[str]
) -> tuple[list[int], list[int]]:
    tag = next(p for p in recipe.step if isinstance(p, Tokens))
    separator = encode_plain(tokenizer, tag.text)
    ids = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    ids += encode_plain(tokenizer, problem)
    reads = []
    for step in steps:
        ids += encode_plain(tokenizer, step) + separator
        reads.append(len(ids) - 1)
    return ids, reads
