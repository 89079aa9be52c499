"""Families that are language models: the head is two rows of the vocabulary, + and -.

A language model says nowhere that it is a reward model, so these are named with ``--recipe``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from prm_edge_runtime.errors import CheckpointError, ProofError
from prm_edge_runtime.recipe import (
    Part,
    Recipe,
    Score,
    Slot,
    Split,
    Tag,
    Text,
    Tokens,
    allowed_aggregates,
)

from .chat import PROBLEM_MARK, render, template_parts
from .family import Request, checked, encode_plain

VERDICTS: Final = ("+", "-")  # the good one first, as in every family here
SHEPHERD_TAG: Final = " ки"
_STEP_MARKS: Final = ("\ue000first\ue001", "\ue000second\ue001")


def _verdict_recipe(
    family: str,
    encode: str,
    prompt: tuple[Part, ...],
    between: tuple[Part, ...],
    step: tuple[Part, ...],
    split: str,
    aggregate: str,
) -> Recipe:
    score = Score(kind="softmax", good=0)
    return checked(
        Recipe(
            family=family,
            encode=encode,
            prompt=prompt,
            between=between,
            step=step,
            split=Split(separator=split),
            logits=len(VERDICTS),
            score=score,
            aggregates=allowed_aggregates(score),
            aggregate=aggregate,
            label_meaning="on_path",  # both are trained on how often a step leads to the answer
        )
    )


# --- Math-Shepherd (peiyi9979/math-shepherd-mistral-7b-prm, model card): one text, encoded once,
# "{question} {step} ки\n{step} ки", each score at the token that " ки" becomes there. A step's own
# whitespace at its ends would merge with the tag, and is left out.
def build_shepherd(request: Request) -> Recipe:
    """The recipe of Math-Shepherd."""
    before, after = (encode_plain(request.tokenizer, "x" + text) for text in ("", SHEPHERD_TAG))
    if len(after) != len(before) + 1:
        raise CheckpointError(
            f"the tag {SHEPHERD_TAG!r} is {len(after) - len(before)} tokens of this tokenizer and "
            "must be one; use the tokenizer the model was trained with"
        )
    return _verdict_recipe(
        family="math-shepherd",
        encode="joint",
        prompt=(*_bos(request), Slot(name="problem"), Text(text=" ")),
        between=(Text(text="\n"),),
        step=(Slot(name="step", strip=True), Tag(text=SHEPHERD_TAG, id=after[-1])),
        split="\n",
        aggregate="min",
    )


def _bos(request: Request) -> tuple[Part, ...]:
    index = request.tokenizer.bos_token_id
    if index is None:
        raise CheckpointError(
            "the tokenizer has no bos_token, with which this family's texts begin; use the "
            "tokenizer of the PRM's own repository"
        )
    return (Tokens(ids=(int(index),), text=str(request.tokenizer.bos_token)),)


def shepherd_reference(
    tokenizer: Any, recipe: Recipe, problem: str, steps: Sequence[str]
) -> tuple[list[int], list[int]]:
    """The model card's own lines."""
    output = "\n".join(step.strip() + SHEPHERD_TAG for step in steps)
    ids = [int(tokenizer.bos_token_id), *encode_plain(tokenizer, f"{problem} {output}")]
    tag = encode_plain(tokenizer, "x" + SHEPHERD_TAG)[-1]
    return ids, [position for position, token in enumerate(ids) if token == tag]


# --- RLHFlow/Llama3.1-8B-PRM-{Deepseek,Mistral}-Data (RLHFlow/RLHF-Reward-Modeling,
# math-rm/prm_evaluate.py): a conversation whose first user turn is "{question} {step}" and each
# later one a step, every answer "+". The authors run one pass for each step and read at -3, which
# is the token before "+"; one pass over the whole conversation reads the same numbers.
def build_rlhflow(family: str, split: str) -> Callable[[Request], Recipe]:
    """The recipe of RLHFlow's models, whose two data sets are split differently."""

    def build(request: Request) -> Recipe:
        opening, between, closing = _turns(request)
        trims = _trims(request)
        ids = tuple(_spelled(request, closing))
        plus = encode_plain(request.tokenizer, VERDICTS[0])
        if len(ids) < 3 or [ids[-2]] != plus:
            raise CheckpointError(
                "the chat template does not end an answer '+' with that token and one more, so "
                "that the score cannot be read third from the end as its authors do"
            )
        first = (Slot(name="problem"), Text(text=" "))
        return _verdict_recipe(
            family=family,
            encode="trimmed" if trims else "joint",
            prompt=(*_literal(request, opening, trims), *first),
            between=_literal(request, between, trims),
            step=(Slot(name="step", strip=True), Tokens(ids=ids, text=closing, read=-3)),
            split=split,
            aggregate="mean",
        )

    return build


def _conversation(problem: str, steps: Sequence[str]) -> list[dict[str, str]]:
    turns: list[dict[str, str]] = []
    for index, step in enumerate(steps):
        content = step if index else f"{problem} {step}"
        turns += [{"role": "user", "content": content}, {"role": "assistant", "content": "+"}]
    return turns


def _turns(request: Request) -> tuple[str, str, str]:
    """What the chat template writes before the problem, between two steps, and after the last."""
    template = request.files.chat_template
    if template is None:
        raise CheckpointError(
            "this family needs the checkpoint's chat template, and neither tokenizer_config.json "
            "nor chat_template.jinja has one"
        )
    if "strftime_now" in template:
        raise CheckpointError(
            "the chat template writes today's date into every text (strftime_now); use the "
            "template of the PRM's own repository, not the base model's"
        )
    rendered = render(request.tokenizer, _conversation(PROBLEM_MARK, _STEP_MARKS))
    opening, found, rest = rendered.partition(f"{PROBLEM_MARK} {_STEP_MARKS[0]}")
    middle, found_again, closing = rest.partition(_STEP_MARKS[1])
    if not found or not found_again or not middle.startswith(closing):
        raise CheckpointError(
            "the chat template does not repeat the turns of a conversation as they are given"
        )
    return opening, middle[len(closing) :], closing


def _trims(request: Request) -> bool:
    padded = f" {PROBLEM_MARK} "
    return padded not in render(request.tokenizer, [{"role": "user", "content": padded}])


def _literal(request: Request, text: str, cut: bool) -> tuple[Part, ...]:
    """Template text as parts; ``cut``: as tokens alone, so that trimming leaves it whole."""
    if cut and text:
        return (Tokens(ids=tuple(_spelled(request, text)), text=text),)
    return template_parts(text, request.files.added)


def _spelled(request: Request, text: str) -> list[int]:
    return encode_plain(request.tokenizer, text)


def rlhflow_reference(
    tokenizer: Any, recipe: Recipe, problem: str, steps: Sequence[str]
) -> tuple[list[int], list[int]]:
    """The authors' own passes, one for each step; each must begin as the whole does."""
    stripped = [step.strip() for step in steps]
    passes = [
        encode_plain(tokenizer, render(tokenizer, _conversation(problem, stripped[: k + 1])))
        for k in range(len(stripped))
    ]
    ids = passes[-1]
    if any(ids[: len(part)] != part for part in passes):
        raise ProofError(
            "the chat template changes earlier turns when later ones follow: one pass cannot "
            "read what one pass for each step reads"
        )
    reads = [len(part) - 3 for part in passes]
    return ids[: reads[-1] + 1], reads
