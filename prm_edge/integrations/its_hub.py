"""its_hub's reward model interface, for best of N and particle filtering.

In: a prompt and responses that may be unfinished. Out: one score for each response. Imports nothing
of its_hub, which asks for an object with ``score`` and ``ascore``::

    from prm_edge.integrations.its_hub import ProcessRewardModel

    search = ParticleFiltering(steps, prm=ProcessRewardModel(Scorer.load("my-prm"), by="last"))
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from prm_edge_runtime import scoring
from prm_edge_runtime.errors import InputError
from prm_edge_runtime.results import StepScores
from prm_edge_runtime.scorer import Scorer

from .conversations import problem_of, response_of, score_responses

__all__ = ["ProcessRewardModel"]


class ProcessRewardModel:
    """A package as its_hub's process reward model. Thread-safe, as the scorer is."""

    def __init__(self, scorer: Scorer, *, by: str | None = None) -> None:
        """``by``: the aggregate over steps, the recipe's own if None.

        Raises:
            ConfigError: when the recipe does not define it.
        """
        self._scorer = scorer
        self._by = scorer.recipe.aggregate if by is None else by
        scoring.aggregate((), self._by, scorer.recipe.aggregates)

    def score(self, prompt_or_messages: Any, responses: Sequence[str]) -> list[float]:
        """Score each response; what they begin with in common is run once.

        Raises:
            InputError: when one cannot be scored: a made-up number would steer the search.
        """
        if isinstance(responses, str):
            raise InputError("responses must be a list of strings, got one string; pass [response]")
        problem = problem_of(_plain(prompt_or_messages))
        texts = [response_of(response) for response in responses]
        scores = []
        for index, result in enumerate(score_responses(self._scorer, problem, texts)):
            value = result.aggregate(self._by) if isinstance(result, StepScores) else None
            if value is None:
                why = "it has no steps, or one without a score"
                raise InputError(
                    f"response {index} cannot be scored: "
                    f"{why if isinstance(result, StepScores) else result}"
                )
            scores.append(value)
        return scores

    async def ascore(self, prompt_or_messages: Any, responses: Sequence[str]) -> list[float]:
        """Score as :meth:`score` does, in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.score, prompt_or_messages, responses)


def _plain(prompt: Any) -> Any:
    """its_hub's ChatMessages and ChatMessage as text or as dicts."""
    if hasattr(prompt, "to_chat_messages"):
        prompt = prompt.to_chat_messages()
    if isinstance(prompt, list | tuple):
        return [
            message
            if isinstance(message, dict)
            else {"role": message.role, "content": message.extract_text_content()}
            for message in prompt
        ]
    return prompt
