"""Prompts and completions as trainers pass them: text, or chat messages.

Imports nothing but the standard library and the runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prm_edge_runtime.errors import EngineError, InputError, InputTypeError
from prm_edge_runtime.lengths import NULL
from prm_edge_runtime.results import StepScores
from prm_edge_runtime.scorer import Scorer

# what one completion can do wrong; a package or machine at fault stops the run
COMPLETION_ERRORS = (InputError, EngineError)


def problem_of(prompt: object) -> str:
    """The problem: text as it is, else the last message of the user.

    Raises:
        InputTypeError: for anything else.
    """
    if isinstance(prompt, str):
        return prompt
    for message in reversed(_messages(prompt, "prompt")):
        if message["role"] == "user":
            return text_of(message["content"], "the user's message")
    raise InputTypeError("the prompt has no message of the user, which would be the problem")


def response_of(completion: object) -> str:
    """The response: text as it is, else the messages of the assistant, joined.

    Raises:
        InputTypeError: for anything else.
    """
    if isinstance(completion, str):
        return completion
    said = [m for m in _messages(completion, "completion") if m["role"] == "assistant"]
    return "".join(text_of(message["content"], "the assistant's message") for message in said)


def text_of(content: object, what: str) -> str:
    """The text of a message, whether it is a string or a list of parts.

    Raises:
        InputTypeError: when a part is no text.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    raise InputTypeError(f"{what} must be text, got {type(content).__name__}")


def _messages(value: object, what: str) -> list[dict[str, Any]]:
    if isinstance(value, Sequence) and all(
        isinstance(message, dict) and {"role", "content"} <= message.keys() for message in value
    ):
        return list(value)
    raise InputTypeError(
        f"a {what} must be text or messages with role and content, got {type(value).__name__}"
    )


def score_responses(
    scorer: Scorer, problem: str, responses: Sequence[str]
) -> list[StepScores | InputError | EngineError]:
    """Score the responses to one problem, sharing what they have in common.

    One that cannot be scored is what went wrong with it.
    """
    try:
        candidates = [scorer.split(response) for response in responses]
        return list(scorer.rank(problem, candidates, on_too_long=NULL).candidates)
    except COMPLETION_ERRORS:
        # one of them is at fault: find it
        return [_score_response(scorer, problem, response) for response in responses]


def _score_response(
    scorer: Scorer, problem: str, response: str
) -> StepScores | InputError | EngineError:
    try:
        return scorer.score(problem, scorer.split(response), on_too_long=NULL)
    except COMPLETION_ERRORS as error:
        return error
