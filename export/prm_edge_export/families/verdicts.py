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
from .family import Request, checked, encode_plain, leading, required_bos

VERDICTS: Final = ("+", "-")  # the good one first
SPACED_VERDICTS: Final = (" +", " -")
SHEPHERD_TAG: Final = " ки"
VERSA_TAG: Final = " \n\n\n\n"
PSA_TAG: Final = " \n\n\n\n\n"
_STEP_MARKS: Final = ("\ue000first\ue001", "\ue000second\ue001")


def _verdict_recipe(
    family: str,
    encode: str,
    prompt: tuple[Part, ...],
    between: tuple[Part, ...],
    step: tuple[Part, ...],
    split: str,
    aggregate: str,
    good: int = 0,
    label_meaning: str = "on_path",  # most are trained on how often a step leads to the answer
) -> Recipe:
    score = Score(kind="softmax", good=good)
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
            label_meaning=label_meaning,
        )
    )


# --- Math-Shepherd (peiyi9979/math-shepherd-mistral-7b-prm, model card): one text, encoded once,
# "{question} {step} ки\n{step} ки", each score at the token that " ки" becomes there. A step's own
# whitespace at its ends would merge with the tag, and is left out.
def build_shepherd(request: Request) -> Recipe:
    """The recipe of Math-Shepherd."""
    tag = _tag(request, SHEPHERD_TAG)
    return _verdict_recipe(
        family="math-shepherd",
        encode="joint",
        prompt=(*required_bos(request), Slot(name="problem"), Text(text=" ")),
        between=(Text(text="\n"),),
        step=(Slot(name="step", strip=True), tag),
        split="\n",
        aggregate="min",
    )


def _tag(request: Request, text: str) -> Tag:
    before, after = (encode_plain(request.tokenizer, "x" + end) for end in ("", text))
    if len(after) != len(before) + 1:
        raise CheckpointError(
            f"the tag {text!r} is {len(after) - len(before)} tokens of this tokenizer and "
            "must be one; use the tokenizer the model was trained with"
        )
    return Tag(text=text, id=after[-1])


def shepherd_reference(
    tokenizer: Any, recipe: Recipe, problem: str, steps: Sequence[str]
) -> tuple[list[int], list[int]]:
    """The model card's own lines."""
    output = "\n".join(step.strip() + SHEPHERD_TAG for step in steps)
    ids = [int(tokenizer.bos_token_id), *encode_plain(tokenizer, f"{problem} {output}")]
    tag = encode_plain(tokenizer, "x" + SHEPHERD_TAG)[-1]
    return ids, [position for position, token in enumerate(ids) if token == tag]


# --- ER-PRM (HanningZhang/Llama3.1-Math-PRM; hanningzhang/ER-PRM,
# evaluation/evaluate_math_reward_model.py): Math-Shepherd's texts without the newline between
# steps, so that the next one follows the tag at once; rows " +" and " -".
def build_er_prm(request: Request) -> Recipe:
    """The recipe of ER-PRM."""
    return _verdict_recipe(
        family="er-prm",
        encode="joint",
        prompt=(*leading(request), Slot(name="problem"), Text(text=" ")),
        between=(),
        step=(Slot(name="step", strip=True), _tag(request, SHEPHERD_TAG)),
        split="\n",
        aggregate="min",
    )


# --- VersaPRM and the PRM800K models it is trained from (UW-Madison-Lee-Lab/VersaPRM): one text,
# "{question} \n\n{step} \n\n\n\n{step} \n\n\n\n", read at the token of " \n\n\n\n"; rows - and +,
# of which the second is good.
def build_versaprm(request: Request) -> Recipe:
    """The recipe of VersaPRM."""
    return _verdict_recipe(
        family="versaprm",
        encode="joint",
        prompt=(*leading(request), Slot(name="problem"), Text(text=" \n\n")),
        between=(),
        step=(Slot(name="step", strip=True), _tag(request, VERSA_TAG)),
        split="\n\n",
        aggregate="min",
        good=1,
        label_meaning="until_first_error",
    )


# --- Math-psa (openreasoner/openr, prm/code/test_qwen.py and prm/infer_fns.py): one text,
# "{question} {step} \n\n\n\n\n {step} \n\n\n\n\n", read at the token of the newlines.
def build_math_psa(request: Request) -> Recipe:
    """The recipe of Math-psa."""
    return _verdict_recipe(
        family="math-psa",
        encode="joint",
        prompt=(*leading(request), Slot(name="problem"), Text(text=" ")),
        between=(Text(text=" "),),
        step=(Slot(name="step", strip=True), _tag(request, PSA_TAG)),
        split="\n",
        aggregate="min",
    )


def tagged_reference(
    opening: str, tag: str, between: str
) -> Callable[[Any, Recipe, str, Sequence[str]], tuple[list[int], list[int]]]:
    """Their authors' lines: one text, and a score wherever the tag's id is."""

    def encode(
        tokenizer: Any, recipe: Recipe, problem: str, steps: Sequence[str]
    ) -> tuple[list[int], list[int]]:
        text = problem + opening + between.join(step.strip() + tag for step in steps)
        ids = [int(i) for i in tokenizer(text)["input_ids"]]
        wanted = encode_plain(tokenizer, "x" + tag)[-1]
        return ids, [position for position, token in enumerate(ids) if token == wanted]

    return encode


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
