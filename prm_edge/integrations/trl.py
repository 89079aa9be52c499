"""Rewards for TRL: a GRPO reward function, and the token span of each step.

In: what ``GRPOTrainer`` passes its reward functions. Out: one number for each completion, None for
what could not be scored, which TRL leaves out. Needs no torch and imports no TRL::

    from prm_edge import Scorer
    from prm_edge.integrations.trl import reward_function

    trainer = GRPOTrainer(model, reward_funcs=reward_function(Scorer.load("my-prm"), by="min"), ...)
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prm_edge_runtime import scoring
from prm_edge_runtime.errors import InputError
from prm_edge_runtime.lengths import NULL
from prm_edge_runtime.results import StepScores
from prm_edge_runtime.scorer import Scorer

from .conversations import problem_of, response_of, score_responses

__all__ = ["StepSpan", "reward_function", "step_spans"]

logger = logging.getLogger("prm_edge")


def reward_function(
    scorer: Scorer, *, by: str | None = None, problem_key: str | None = None
) -> Callable[..., list[float | None]]:
    """Make a reward function with TRL's calling convention.

    Args:
        by: the aggregate over steps, the recipe's own if None.
        problem_key: column of the data set that holds the bare problem; without it the prompt is
            the problem, or its last message of the user.

    Raises:
        ConfigError: when the recipe does not define the aggregate ``by``.
    """
    by = scorer.recipe.aggregate if by is None else by
    scoring.aggregate((), by, scorer.recipe.aggregates)

    def prm_edge_reward(
        prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        problems = prompts if problem_key is None else _column(columns, problem_key)
        rewards, failures = _rewards(scorer, by, [problem_of(p) for p in problems], completions)
        for message in failures[:1]:
            logger.warning("%d of %d completions without reward: %s", len(failures),
                           len(completions), message)  # fmt: skip
        log_metric = columns.get("log_metric")
        if callable(log_metric):
            missing = sum(reward is None for reward in rewards)
            log_metric("prm_edge/without_reward", missing / max(len(rewards), 1))
        return rewards

    return prm_edge_reward


def _column(columns: dict[str, Any], key: str) -> Sequence[Any]:
    if key not in columns:
        known = ", ".join(sorted(columns)) or "none"
        raise InputError(f"the data set has no column {key!r} for the problem; it has: {known}")
    column: Sequence[Any] = columns[key]
    return column


def _rewards(
    scorer: Scorer, by: str, problems: Sequence[str], completions: Sequence[Any]
) -> tuple[list[float | None], list[str]]:
    """Rewards in order, and why some are None. Completions of one problem are run together."""
    groups: dict[str, list[int]] = {}
    for index, problem in enumerate(problems):
        groups.setdefault(problem, []).append(index)
    rewards: list[float | None] = [None] * len(completions)
    failures = []
    for problem, members in groups.items():
        responses = [response_of(completions[index]) for index in members]
        for index, result in zip(members, score_responses(scorer, problem, responses), strict=True):
            if isinstance(result, StepScores):
                rewards[index] = result.aggregate(by)
                if rewards[index] is None:
                    failures.append("it has no steps, or one without a score")
            else:
                failures.append(str(result))
    return rewards, failures


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpan:
    """One step of a completion: tokens ``start`` to before ``end``, and its score."""

    start: int
    end: int
    step: str
    reward: float | None


def step_spans(
    scorer: Scorer, tokenizer: Any, problem: str, completion_ids: Sequence[int]
) -> list[StepSpan]:
    """Find the tokens of each step of a completion, and score the steps.

    A token that holds the end of one step and the beginning of the next belongs to the first.
    ``tokenizer``: the policy's, as transformers loads it.

    Raises:
        InputError: when a step cannot be found in the text, or cannot be scored.
    """
    ids = [int(token) for token in completion_ids]

    def length(count: int) -> int:
        # a token may end inside a character, which is shown as U+FFFD until it is whole
        return len(_decode(tokenizer, ids[:count]).rstrip("\ufffd"))

    text = _decode(tokenizer, ids)
    steps = scorer.split(text)
    scores = scorer.score(problem, steps, on_too_long=NULL).scores
    spans, at, start = [], 0, 0
    for index, (step, reward) in enumerate(zip(steps, scores, strict=True)):
        found = text.find(step, at)
        if found < 0:
            raise InputError(f"step {index} of the completion is not in its text as it stands")
        at = found + len(step)
        counts = range(len(ids) + 1)
        # the tokens before it end at or before its first character; of those that end there, all
        before = length(bisect_right(counts, found, key=length) - 1)
        first = max(bisect_left(counts, before, key=length), start)
        end = min(bisect_left(counts, at, key=length), len(ids))
        spans.append(StepSpan(start=first, end=end, step=step, reward=reward))
        start = end
    return spans


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
