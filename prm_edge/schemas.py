"""Every shape of record that is understood: one row of ``SCHEMAS`` each.

In: the decoded object of one line. Out: a record to score, and what the data set says of it. A
record fits a schema when it has all of the schema's keys. Imports nothing but the standard library
and the runtime.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from prm_edge_runtime.encoding import check_text
from prm_edge_runtime.errors import InputError, InputTypeError

from .solutions import (
    BAD,
    GOOD,
    NO_ERROR,
    UNKNOWN,
    Candidates,
    Record,
    Response,
    Solution,
    Truth,
    a_rating,
    an_index,
    an_object,
    kind,
    objects,
    read_id,
    strings,
)

MATH_SHEPHERD_TAG: Final = "ки"
MATH_SHEPHERD_RATINGS: Final = {"+": GOOD, "-": BAD}
FIRST_STEP: Final = re.compile(r"\s(?=Step 1:)")

Truths = tuple[Truth, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """One shape of record.

    ``keys``: those it is recognised by. ``about``: what it is, for people. ``read``: the record to
    score. ``truths``: what is known of its solutions, one for each.
    """

    name: str
    keys: tuple[str, ...]
    about: str
    read: Callable[[dict[str, Any]], Record]
    truths: Callable[[dict[str, Any]], Truths]


# --- prm-edge's own, which ProcessBench's is one of ---


def _read_steps(data: dict[str, Any]) -> Record:
    steps = strings(data["steps"], "steps", "; a whole response goes under the key 'response'")
    return Solution(id=read_id(data), problem=check_text(data["problem"], "problem"), steps=steps)


def _truth_of_steps(data: dict[str, Any]) -> Truths:
    return (_native_truth(data, len(strings(data["steps"], "steps"))),)


def _native_truth(data: dict[str, Any], n_steps: int) -> Truth:
    label, ratings = data.get("label"), data.get("step_labels")
    if label is not None:
        label = an_index(label, "label", lowest=NO_ERROR, end=n_steps)
    return Truth(
        label=label,
        ratings=None if ratings is None else _ratings(ratings, "step_labels", n_steps),
        answer=_answer(data.get("final_answer_correct"), "final_answer_correct"),
        group=_group(data.get("source")),
    )


def _read_response(data: dict[str, Any]) -> Record:
    return Response(
        id=read_id(data),
        problem=check_text(data["problem"], "problem"),
        response=check_text(data["response"], "response"),
    )


def _truth_of_response(data: dict[str, Any]) -> Truths:
    # labels of steps would need the steps, which the recipe has yet to cut
    answer = _answer(data.get("final_answer_correct"), "final_answer_correct")
    return (Truth(answer=answer, group=_group(data.get("source"))),)


def _read_candidates(data: dict[str, Any]) -> Record:
    candidates = data["candidates"]
    if not isinstance(candidates, list):
        raise InputTypeError(f"candidates must be a list of lists of steps, got {kind(candidates)}")
    return Candidates(
        id=read_id(data),
        problem=check_text(data["problem"], "problem"),
        candidates=tuple(
            strings(steps, f"candidates[{index}]", "; every candidate is a list of steps")
            for index, steps in enumerate(candidates)
        ),
    )


def _truths_of_candidates(data: dict[str, Any]) -> Truths:
    candidates = [strings(steps, "candidates") for steps in data["candidates"]]
    group = _group(data.get("source"))
    labels = _one_each(data.get("labels"), "labels", len(candidates))
    answers = _one_each(data.get("final_answers_correct"), "final_answers_correct", len(candidates))
    return tuple(
        Truth(
            label=None
            if label is None
            else an_index(label, f"labels[{index}]", lowest=NO_ERROR, end=len(steps)),
            answer=_answer(answer, f"final_answers_correct[{index}]"),
            group=group,
        )
        for index, (steps, label, answer) in enumerate(
            zip(candidates, labels, answers, strict=True)
        )
    )


# --- other people's ---


def _read_trl(data: dict[str, Any]) -> Record:
    steps = strings(data["completions"], "completions", "; every step is one string of it")
    return Solution(id=read_id(data), problem=check_text(data["prompt"], "prompt"), steps=steps)


def _truth_of_trl(data: dict[str, Any]) -> Truths:
    if data.get("labels") is None:
        return (UNKNOWN,)
    return (Truth(ratings=_ratings(data["labels"], "labels", len(data["completions"]))),)


def _prm800k_path(data: dict[str, Any]) -> list[tuple[str, int | None]]:
    """The solution that was carried on: at each step the chosen completion, or the human's.

    It ends where nobody carried on, with the first completion that was rated there, which is
    the wrong step where the labeller stopped at an error.
    """
    label = an_object(data["label"], "label")
    path: list[tuple[str, int | None]] = []
    for index, step in enumerate(objects(label.get("steps"), "label.steps")):
        at = f"label.steps[{index}]"
        completions = objects(step.get("completions") or [], f"{at}.completions")
        chosen, human = step.get("chosen_completion"), step.get("human_completion")
        if chosen is not None:
            if not completions:
                raise InputError(f"{at} has a chosen_completion and no completions")
            last = an_index(chosen, f"{at}.chosen_completion", lowest=0, end=len(completions))
            path.append(_prm800k_step(completions[last], at))
        elif human is not None:
            # what the labeller wrote in place of what was wrong carries no rating: it is good
            text, rating = _prm800k_step(an_object(human, f"{at}.human_completion"), at)
            path.append((text, GOOD if rating is None else rating))
        else:
            if completions:
                path.append(_prm800k_step(completions[0], at))
            break
    return path


def _prm800k_step(completion: dict[str, Any], at: str) -> tuple[str, int | None]:
    text = check_text(completion.get("text"), f"{at}: text")
    return text, a_rating(completion.get("rating"), f"{at}: rating")


def _read_prm800k(data: dict[str, Any]) -> Record:
    question = an_object(data["question"], "question")
    return Solution(
        id=read_id(data),
        problem=check_text(question.get("problem"), "question.problem"),
        steps=tuple(text for text, _ in _prm800k_path(data)),
    )


def _truth_of_prm800k(data: dict[str, Any]) -> Truths:
    return (Truth(ratings=tuple(rating for _, rating in _prm800k_path(data))),)


def _math_shepherd_parts(data: dict[str, Any]) -> tuple[str, list[str]]:
    """The problem, and the text before each tag."""
    text = check_text(data["input"], "input")
    *pieces, rest = text.split(MATH_SHEPHERD_TAG)
    if not pieces:
        raise InputError(
            f"input holds no {MATH_SHEPHERD_TAG!r}, the mark that Math-Shepherd puts after a step"
        )
    if rest.strip():
        raise InputError(f"input goes on after its last {MATH_SHEPHERD_TAG!r}: {rest[:40]!r}")
    found = FIRST_STEP.search(pieces[0])
    if found is None:
        raise InputError("input has no ' Step 1:' before its first mark, where the solution begins")
    return pieces[0][: found.start()], [pieces[0][found.end() :], *pieces[1:]]


def _read_math_shepherd(data: dict[str, Any]) -> Record:
    problem, pieces = _math_shepherd_parts(data)
    return Solution(
        id=read_id(data), problem=problem, steps=tuple(piece.strip() for piece in pieces)
    )


def _truth_of_math_shepherd(data: dict[str, Any]) -> Truths:
    # the label is the input with + or - in the place of each mark
    pieces = data["input"].split(MATH_SHEPHERD_TAG)
    label = check_text(data["label"], "label")
    ratings, at = [], 0
    for index, piece in enumerate(pieces[:-1]):
        mark = label[at + len(piece) : at + len(piece) + 1]
        if not label.startswith(piece, at) or mark not in MATH_SHEPHERD_RATINGS:
            raise InputError(
                f"label is not the input with + or - at each mark: they part at mark {index}"
            )
        ratings.append(MATH_SHEPHERD_RATINGS[mark])
        at += len(piece) + 1
    return (Truth(ratings=tuple(ratings), group=_group(data.get("task"))),)


def _read_prmbench(data: dict[str, Any]) -> Record:
    return Solution(
        id=read_id(data) if data.get("id") is not None else read_id(data, "idx"),
        problem=check_text(data["modified_question"], "modified_question"),
        steps=strings(data["modified_process"], "modified_process"),
    )


def _truth_of_prmbench(data: dict[str, Any]) -> Truths:
    n_steps = len(data["modified_process"])
    errors = data.get("error_steps")
    if errors is None:
        return (Truth(group=_group(data.get("classification"))),)
    if not isinstance(errors, list):
        raise InputTypeError(f"error_steps must be a list of numbers, got {kind(errors)}")
    ratings = [GOOD] * n_steps
    for error in errors:  # counted from 1
        ratings[an_index(error, "error_steps", lowest=1, end=n_steps + 1) - 1] = BAD
    return (Truth(ratings=tuple(ratings), group=_group(data.get("classification"))),)


def _read_versaprm(data: dict[str, Any]) -> Record:
    chains = objects(data["chain_of_thoughts"], "chain_of_thoughts")
    return Candidates(
        id=read_id(data),
        problem=check_text(data["question"], "question"),
        candidates=tuple(
            strings(chain.get("steps"), f"chain_of_thoughts[{index}].steps")
            for index, chain in enumerate(chains)
        ),
    )


def _truths_of_versaprm(data: dict[str, Any]) -> Truths:
    truths = []
    for index, chain in enumerate(data["chain_of_thoughts"]):
        labels, at = chain.get("labels"), f"chain_of_thoughts[{index}].labels"
        ratings = None if labels is None else _ratings(labels, at, len(chain["steps"]))
        truths.append(Truth(ratings=ratings, group=_group(data.get("source"))))
    return tuple(truths)


def _read_messages(data: dict[str, Any]) -> Record:
    turns = [
        (message.get("role"), message.get("content"))
        for message in objects(data["messages"], "messages")
        # instructions to whoever wrote the solution; a recipe brings its own
        if message.get("role") not in ("system", "developer")
    ]
    roles = [role for role, _ in turns]
    if roles != ["user", "assistant"]:
        shown = ", ".join(str(role)[:20] for role in roles[:6]) or "none"
        raise InputError(
            "messages must be one of the user, the problem, and one of the assistant, its "
            f"solution; got {shown}"
        )
    return Response(
        id=read_id(data),
        problem=_content(turns[0][1], "messages: the user's content"),
        response=_content(turns[1][1], "messages: the assistant's content"),
    )


def _content(value: object, what: str) -> str:
    if not isinstance(value, list):
        return check_text(value, what)
    parts = objects(value, what)
    if any(part.get("type") != "text" for part in parts):
        raise InputError(f"{what} has a part that is no text, which cannot be scored")
    return "".join(check_text(part.get("text"), what) for part in parts)


# --- values that several share ---


def _ratings(value: object, what: str, n_steps: int) -> tuple[int | None, ...]:
    ratings = _one_each(value, what, n_steps)
    return tuple(a_rating(rating, f"{what}[{index}]") for index, rating in enumerate(ratings))


def _one_each(value: object, what: str, count: int) -> list[Any]:
    if value is None:
        return [None] * count
    if not isinstance(value, list):
        raise InputTypeError(f"{what} must be a list, got {kind(value)}")
    if len(value) != count:
        raise InputError(f"{what} must have {count} entries, one for each, got {len(value)}")
    return value


def _answer(value: object, what: str) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise InputTypeError(f"{what} must be true, false or null, got {kind(value)}")
    return value


def _group(value: object) -> str | None:
    return None if value is None else str(value)[:200]


# a new schema is a row here and a row in the test
SCHEMAS: Final = (
    Schema(
        name="steps",
        keys=("problem", "steps"),
        about="prm-edge's own, and ProcessBench's; label: index of the first wrong step, -1 none",
        read=_read_steps,
        truths=_truth_of_steps,
    ),
    Schema(
        name="response",
        keys=("problem", "response"),
        about="a whole response, cut into steps by the recipe",
        read=_read_response,
        truths=_truth_of_response,
    ),
    Schema(
        name="candidates",
        keys=("problem", "candidates"),
        about="several solutions of one problem, compared with each other",
        read=_read_candidates,
        truths=_truths_of_candidates,
    ),
    Schema(
        name="trl",
        keys=("prompt", "completions"),
        about="TRL's stepwise supervision; labels: true for a good step",
        read=_read_trl,
        truths=_truth_of_trl,
    ),
    Schema(
        name="prm800k",
        keys=("question", "label"),
        about="PRM800K as published: the chosen path; neutral is good unless --neutral bad",
        read=_read_prm800k,
        truths=_truth_of_prm800k,
    ),
    Schema(
        name="math-shepherd",
        keys=("input", "label"),
        about="Math-Shepherd as published: one text, a mark after each step",
        read=_read_math_shepherd,
        truths=_truth_of_math_shepherd,
    ),
    Schema(
        name="prmbench",
        keys=("modified_question", "modified_process"),
        about="PRMBench as published: the modified process; error_steps count from 1",
        read=_read_prmbench,
        truths=_truth_of_prmbench,
    ),
    Schema(
        name="versaprm",
        keys=("question", "chain_of_thoughts"),
        about="VersaPRM as published: several chains of one question, compared",
        read=_read_versaprm,
        truths=_truths_of_versaprm,
    ),
    Schema(
        name="messages",
        keys=("messages",),
        about="chat messages: the user's is the problem, the assistant's is cut into steps",
        read=_read_messages,
        truths=_truth_of_response,
    ),
)
