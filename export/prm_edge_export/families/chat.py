"""Families that fill the checkpoint's chat template with one question and one answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from prm_edge_runtime.errors import CheckpointError
from prm_edge_runtime.recipe import (
    Part,
    Recipe,
    Score,
    Slot,
    Split,
    Text,
    Tokens,
    allowed_aggregates,
)

from .family import Request, checked

# The system sentence of the Qwen2.5-Math-PRM model cards (Qwen/Qwen2.5-Math-PRM-7B)
QWEN_SYSTEM: Final = "Please reason step by step, and put your final answer within \\boxed{}."
QWEN_TAG: Final = "<extra_0>"


# --- Qwen2.5-Math-PRM 7B, 72B and 7B-PRM800K (model cards): the chat template with the system
# sentence above, steps joined and ended by <extra_0>, encoded once, read at each <extra_0>.
def build_qwen(request: Request) -> Recipe:
    return _chat(request, family="qwen2.5-math-prm", system=QWEN_SYSTEM)


# --- ReasonFlux-PRM-7B (Gen-Verse README): the same, but no system message is passed, so that the
# checkpoint's template inserts its own.
def build_reasonflux(request: Request) -> Recipe:
    return _chat(request, family="reasonflux-prm", system=None)


# --- ActPRM and ActPRM-X (sail-sg/ActivePRM, examples/py_scripts/code_snippets.py): the texts of
# Qwen2.5-Math-PRM with the tag that config.json names; the mean over the members of sigmoids.
def build_actprm(request: Request) -> Recipe:
    """The recipe of ActPRM."""
    tag, index = request.config.get("rr_token", QWEN_TAG), request.config.get("rr_token_id")
    if index is not None and index != request.files.added.get(str(tag)):
        raise CheckpointError(
            f"config.json gives rr_token {tag!r} the id {index!r}, the tokenizer "
            f"{request.files.added.get(str(tag))}; use the tokenizer the model was trained with"
        )
    return _chat(
        request,
        family="actprm",
        system=QWEN_SYSTEM,
        tag_text=str(tag),
        score=Score(kind="mean_sigmoid"),
    )


PROBLEM_MARK: Final = "\ue000problem\ue001"
STEPS_MARK: Final = "\ue000steps\ue001"


def _messages(system: str | None, problem: str, answer: str) -> list[dict[str, str]]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return [
        *head,
        {"role": "user", "content": problem},
        {"role": "assistant", "content": answer},
    ]


def render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """Fill the tokenizer's chat template.

    Raises:
        CheckpointError: when the template fails.
    """
    try:
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=False
        )
    except Exception as error:  # jinja2 and transformers raise many unrelated types
        raise CheckpointError(f"the checkpoint's chat template cannot be used: {error}") from error
    return str(rendered)


def _chat(
    request: Request,
    *,
    family: str,
    system: str | None,
    tag_text: str = QWEN_TAG,
    score: Score | None = None,
) -> Recipe:
    if request.files.chat_template is None:
        raise CheckpointError(
            f"family {family} needs the checkpoint's chat template, and neither "
            "tokenizer_config.json nor chat_template.jinja has one"
        )
    tag = request.files.added.get(tag_text)
    if tag is None:
        raise CheckpointError(
            f"the tokenizer has no token {tag_text!r} (a stock Qwen2.5 tokenizer names that id "
            "<|quad_end|>); use the tokenizer of the PRM's own repository"
        )
    rendered = render(request.tokenizer, _messages(system, PROBLEM_MARK, STEPS_MARK))
    opening, _, _ = rendered.partition(STEPS_MARK)
    if opening.count(PROBLEM_MARK) != 1 or STEPS_MARK not in rendered:
        raise CheckpointError("the chat template does not insert the question and answer as given")
    score = score or Score(kind="softmax", good=request.good)
    return checked(
        Recipe(
            family=family,
            encode="joint",
            prompt=template_parts(opening, request.files.added),
            between=(),
            step=(Slot(name="step"), Tokens(ids=(tag,), text=tag_text, read=0)),
            split=Split(separator="\n\n"),
            logits=request.logits,
            score=score,
            aggregates=allowed_aggregates(score),
            aggregate="last",
            label_meaning="until_first_error",
        )
    )


def template_parts(opening: str, added: Mapping[str, int]) -> tuple[Part, ...]:
    """Cut a rendered template into added tokens, literal text and the problem's slot."""
    longest_first = sorted([*added, PROBLEM_MARK], key=len, reverse=True)
    pieces = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", opening)
    parts: list[Part] = []
    for piece in filter(None, pieces):
        if piece == PROBLEM_MARK:
            parts.append(Slot(name="problem"))
        elif piece in added:
            parts.append(Tokens(ids=(added[piece],), text=piece))
        else:
            parts.append(Text(text=piece))
    return tuple(parts)


def chat_reference(
    system: str | None,
) -> Callable[[Any, Recipe, str, Sequence[str]], tuple[list[int], list[int]]]:
    def encode(
        tokenizer: Any, recipe: Recipe, problem: str, steps: Sequence[str]
    ) -> tuple[list[int], list[int]]:
        tag_text = next(part.text for part in recipe.step if isinstance(part, Tokens))
        answer = "".join(step + tag_text for step in steps)
        text = render(tokenizer, _messages(system, problem, answer))
        ids = [int(i) for i in tokenizer(text)["input_ids"]]
        tag = tokenizer.convert_tokens_to_ids(tag_text)
        reads = [position for position, token in enumerate(ids) if token == tag]
        return ids[: reads[-1] + 1] if reads else ids, reads

    return encode
