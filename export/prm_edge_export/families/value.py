"""Families with a value head: one number per step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from prm_edge_runtime.errors import CheckpointError
from prm_edge_runtime.recipe import (
    Recipe,
    Score,
    Slot,
    Split,
    Text,
    Tokens,
    allowed_aggregates,
)

from .family import Request, checked, encode_plain

SEPARATOR: Final = "\n"


# --- Skywork-o1-Open-PRM-Qwen-2.5-1.5B and -7B (SkyworkAI/skywork-o1-prm-inference,
# model_utils/io_utils.py): bos + problem + "\n" encoded as one string, each step on its own, "\n"
# after each and read there; sigmoid of the value head; the mean over steps.
def build_skywork(request: Request) -> Recipe:
    """The recipe of Skywork-o1-Open-PRM."""
    bos = request.tokenizer.bos_token_id
    if bos is None:
        raise CheckpointError(
            "the tokenizer has no bos_token, with which Skywork's texts begin (a stock Qwen2.5 "
            "tokenizer has none); use the tokenizer of the PRM's own repository"
        )
    ids = tuple(encode_plain(request.tokenizer, SEPARATOR))
    if len(ids) != 1:
        raise CheckpointError(
            f"{SEPARATOR!r} is {len(ids)} tokens of this tokenizer and must be one; use the "
            "tokenizer the model was trained with"
        )
    score = Score(kind="sigmoid")
    return checked(
        Recipe(
            family="skywork-o1-prm",
            encode="sections",
            prompt=(
                Tokens(ids=(int(bos),), text=str(request.tokenizer.bos_token)),
                Slot(name="problem"),
                Text(text=SEPARATOR),
            ),
            between=(),
            step=(Slot(name="step"), Tokens(ids=ids, text=SEPARATOR, read=0)),
            split=Split(separator=SEPARATOR),
            logits=1,
            score=score,
            aggregates=allowed_aggregates(score),
            aggregate="mean",
            label_meaning="on_path",
        )
    )


def skywork_reference(
    tokenizer: Any, recipe: Recipe, problem: str, steps: Sequence[str]
) -> tuple[list[int], list[int]]:
    """The authors' prepare_input, without its truncation."""
    ids = encode_plain(tokenizer, tokenizer.bos_token + problem + SEPARATOR)
    reads = []
    for step in steps:
        ids += encode_plain(tokenizer, step) + encode_plain(tokenizer, SEPARATOR)[-1:]
        reads.append(len(ids) - 1)
    return ids, reads
