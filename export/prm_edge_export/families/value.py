"""Families whose head gives one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from prm_edge_runtime.errors import CheckpointError
from prm_edge_runtime.recipe import (
    Recipe,
    Score,
    Slot,
    Split,
    Tag,
    Text,
    Tokens,
    allowed_aggregates,
)

from .family import Request, checked, encode_plain, leading, required_bos

SEPARATOR: Final = "\n"
PQM_TAG: Final = "[PRM]"
PQM_OPENING: Final = (
    "Below is an instruction that describes a task.\nWrite a response that appropriately completes "
    "the request.\n\n### Instruction:\n"
)
PQM_RESPONSE: Final = "\n\n### Response: Let's think step by step\n"
LLEMMA_QUESTION: Final = "# Question\n\n"
LLEMMA_SOLUTION: Final = "\n\n# Solution\n\n"
LLEMMA_TAG: Final = "\n\n"


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


# --- PQM (WindyLee0822/Process_Q_Model, bon_eval_hf.py): one text without BOS, " [PRM]" after each
# step, lines between; the value head's own number there, the smallest for a solution.
def build_pqm(request: Request) -> Recipe:
    """The recipe of PQM."""
    tag = request.files.added.get(PQM_TAG)
    if tag is None:
        raise CheckpointError(
            f"the tokenizer has no token {PQM_TAG!r}, which its authors add to that of the base "
            "model; use the tokenizer the model was trained with"
        )
    score = Score(kind="raw")
    return checked(
        Recipe(
            family="pqm",
            encode="joint",
            prompt=(Text(text=PQM_OPENING), Slot(name="problem"), Text(text=PQM_RESPONSE)),
            between=(Text(text=SEPARATOR),),
            step=(
                Slot(name="step", strip=True),
                Text(text=" "),
                Tokens(ids=(tag,), text=PQM_TAG, read=0),
            ),
            split=Split(separator=SEPARATOR),
            logits=1,
            score=score,
            aggregates=allowed_aggregates(score),
            aggregate="min",
            label_meaning="on_path",
        )
    )


def pqm_reference(
    tokenizer: Any, recipe: Recipe, problem: str, steps: Sequence[str]
) -> tuple[list[int], list[int]]:
    """The authors' instruction_format and data_collator."""
    answer = f" {PQM_TAG}\n".join(step.strip() for step in steps) + f" {PQM_TAG}"
    ids = encode_plain(tokenizer, f"{PQM_OPENING}{problem}{PQM_RESPONSE}{answer}")
    tag = encode_plain(tokenizer, PQM_TAG)[-1]
    return ids, [position for position, token in enumerate(ids) if token == tag]


# --- Llemma easy-to-hard (ScalableMath/llemma-7b-*; Edward-Sun/easy-to-hard, inference_reward.py):
# one text, encoded once; the sigmoid of the mean of all logits, at the first newline of the two
# after each step.
def build_llemma(request: Request) -> Recipe:
    """The recipe of the Llemma PRMs."""
    before, after = (encode_plain(request.tokenizer, "x" + text) for text in ("", LLEMMA_TAG))
    ids = after[len(before) :]
    if len(ids) != 2 or after[: len(before)] != before:
        raise CheckpointError(
            f"two newlines are {len(ids)} tokens of this tokenizer and must be two, at the first "
            "of which the score is read; use the tokenizer the model was trained with"
        )
    score = Score(kind="sigmoid")
    return checked(
        Recipe(
            family="llemma",
            encode="joint",
            prompt=(
                *required_bos(request),
                Text(text=LLEMMA_QUESTION),
                Slot(name="problem"),
                Text(text=LLEMMA_SOLUTION),
            ),
            between=(),
            step=(
                Slot(name="step", strip=True),
                Tag(text=LLEMMA_TAG, id=ids[0], then=(ids[1],)),
            ),
            split=Split(separator=LLEMMA_TAG),
            logits=1,
            score=score,
            aggregates=allowed_aggregates(score),
            aggregate="min",  # of the authors' own ways the one that a single bad step decides
            label_meaning="until_first_error",
        )
    )


def llemma_reference(
    tokenizer: Any, recipe: Recipe, problem: str, steps: Sequence[str]
) -> tuple[list[int], list[int]]:
    """The authors' post_process_newline_scores: pairs of newlines, without those of the prompt."""
    prompt = LLEMMA_QUESTION + problem + LLEMMA_SOLUTION
    text = prompt + "".join(step.strip() + LLEMMA_TAG for step in steps)
    ids = [int(tokenizer.bos_token_id), *encode_plain(tokenizer, text)]
    pair = encode_plain(tokenizer, "x" + LLEMMA_TAG)[-2:]
    reads: list[int] = []
    for at in range(len(ids) - 1):
        if ids[at : at + 2] == pair and (not reads or at > reads[-1] + 1):
            reads.append(at)
    reads = reads[prompt.count(LLEMMA_TAG) :]
    return ids[: reads[-1] + 1] if reads else ids, reads


# --- ReasonFlux-PRM-1.5B (Gen-Verse/ReasonFlux, ReasonFlux_PRM/README.md and utils/rm_utils.py):
# problem and response as one string, the sigmoid at its last token; cut after 2048 tokens.
def build_trajectory(request: Request) -> Recipe:
    """The recipe of ReasonFlux-PRM-1.5B, which scores a whole solution."""
    score = Score(kind="sigmoid")
    return checked(
        Recipe(
            family="reasonflux-prm-1.5b",
            encode="joint",
            prompt=(*leading(request), Slot(name="problem")),
            between=(),
            step=(Slot(name="step", read=-1),),
            split=Split(separator=None, strip=False),
            logits=1,
            score=score,
            aggregates=allowed_aggregates(score),
            aggregate="last",
            label_meaning="on_path",
        )
    )


def trajectory_reference(
    tokenizer: Any, recipe: Recipe, problem: str, steps: Sequence[str]
) -> tuple[list[int], list[int]]:
    """The authors' own call: problem + completion."""
    ids = [int(i) for i in tokenizer(problem + "".join(steps))["input_ids"]]
    return ids, [len(ids) - 1]
