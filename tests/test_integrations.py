"""Rewards for trainers and searches: each completion gets its own, None is no number."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from fake_scorer import BROKEN, LONG, fake_scorer
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_edge.integrations.conversations import problem_of, response_of, text_of
from prm_edge.integrations.its_hub import ProcessRewardModel
from prm_edge.integrations.trl import StepSpan, reward_function, step_spans
from prm_edge_runtime.errors import ConfigError, InputError, InputTypeError

USER = {"role": "user", "content": "p"}


def said(text: object) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def test_reward_function_follows_trls_convention() -> None:
    reward = reward_function(fake_scorer())
    assert reward.__name__ == "prm_edge_reward"
    completions = ["0.9\n\n0.4", "0.8", "", f"0.9\n\n{LONG}", BROKEN, "\ud800"]
    found = reward(
        prompts=["p", "q", "p", "q", "p", "q"],
        completions=completions,
        completion_ids=[[1]] * 6,
        answer=["x"] * 6,
        trainer_state=None,
    )
    assert found == [0.4, 0.8, None, None, None, None]


def test_reward_function_reads_messages() -> None:
    reward = reward_function(fake_scorer(), by="last")
    prompts = [[{"role": "system", "content": "s"}, USER]] * 2
    assert reward(prompts=prompts, completions=[said("0.9\n\n0.6"), said("0.1")]) == [0.6, 0.1]


def test_reward_function_takes_the_problem_from_a_column() -> None:
    asked: list[str] = []
    scorer: Any = fake_scorer()
    rank = scorer.rank
    scorer.rank = lambda problem, candidates, **options: (asked.append(problem),
                                               rank(problem, candidates, **options))[1]  # fmt: skip
    reward = reward_function(scorer, problem_key="question")
    completions = ["0.9", "0.8", "0.7"]
    given_columns = {"question": ["a", "b", "a"]}
    assert reward(prompts=["x"] * 3, completions=completions, **given_columns) == [0.9, 0.8, 0.7]
    assert asked == ["a", "b"]  # one run for all completions of a problem
    with pytest.raises(InputError, match="has no column 'question' for the problem; it has: other"):
        reward(prompts=["x"], completions=["0.9"], other=[1])


def test_reward_function_reports_what_has_no_reward(caplog: pytest.LogCaptureFixture) -> None:
    logged: dict[str, float] = {}
    reward = reward_function(fake_scorer())
    with caplog.at_level(logging.WARNING, logger="prm_edge"):
        reward(prompts=["p"] * 4, completions=["0.9", BROKEN, "", "0.8"],
               log_metric=lambda name, value: logged.update({name: value}))  # fmt: skip
    assert logged == {"prm_edge/without_reward": 0.5}
    assert "2 of 4 completions without reward: the model returned a logit" in caplog.text


def test_reward_function_refuses_an_unknown_aggregate() -> None:
    with pytest.raises(ConfigError, match="'max' is not defined"):
        reward_function(fake_scorer(), by="max")


def test_conversations_refuse_what_is_none() -> None:
    with pytest.raises(InputTypeError, match="a prompt must be text or messages with role and con"):
        problem_of(3)
    with pytest.raises(InputTypeError, match="the prompt has no message of the user"):
        problem_of(said("x"))
    with pytest.raises(InputTypeError, match="a completion must be text or messages"):
        response_of([{"role": "assistant"}])
    with pytest.raises(InputTypeError, match="the message must be text, got int"):
        text_of(3, "the message")
    assert response_of(said([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])) == "ab"


class Characters:
    """A tokenizer of bytes: characters beyond ASCII take several tokens. Token 256 is special."""

    def decode(self, ids: list[int], **options: Any) -> str:
        assert options == {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return bytes(token for token in ids if token < 256).decode("utf-8", "replace")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(alphabet="ab1é½😀 ", min_size=1, max_size=6), min_size=1, max_size=4))
def test_step_spans_hold_their_steps(texts: list[str]) -> None:
    scorer = fake_scorer()
    text = "\n\n".join(texts)
    ids = [*text.encode(), 256]
    spans = step_spans(scorer, Characters(), "p", ids)
    assert [span.step for span in spans] == scorer.split(text)
    end = 0
    for span in spans:
        assert end <= span.start < span.end <= len(ids)
        assert bytes(ids[span.start : span.end]).decode() == span.step
        end = span.end


def test_step_spans_carry_the_scores() -> None:
    ids = list(b"0.9\n\n0.25")
    assert step_spans(fake_scorer(), Characters(), "p", ids) == [
        StepSpan(start=0, end=3, step="0.9", reward=0.9),
        StepSpan(start=5, end=9, step="0.25", reward=0.25),
    ]


def test_step_spans_give_a_shared_token_to_the_first_step() -> None:
    class Pairs:
        words = ("0.9\n\n0.", "5", "<end>")

        def decode(self, ids: list[int], **options: Any) -> str:
            return "".join(self.words[i] for i in ids if i < 2)

    spans = step_spans(fake_scorer(), Pairs(), "p", [0, 1, 2])
    assert [(span.start, span.end) for span in spans] == [(0, 1), (1, 2)]
    Pairs.words = ("0.9", "\n\n0.", "5")  # here it holds no end
    spans = step_spans(fake_scorer(), Pairs(), "p", [0, 1])
    assert [(span.start, span.end) for span in spans] == [(0, 1), (1, 2)]


def test_step_spans_refuse_what_they_cannot_place(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer: Any = fake_scorer()
    monkeypatch.setattr(scorer, "split", lambda text: ["elsewhere"])
    with pytest.raises(InputError, match="step 0 of the completion is not in its text"):
        step_spans(scorer, Characters(), "p", list(b"0.9"))


def test_its_hub_scores_in_order_or_says_why_not() -> None:
    model = ProcessRewardModel(fake_scorer(), by="last")
    assert model.score("p", ["0.9\n\n0.3", "0.8"]) == [0.3, 0.8]
    assert asyncio.run(model.ascore([USER], ["0.7"])) == [0.7]
    with pytest.raises(InputError, match="response 1 cannot be scored: it has no steps"):
        model.score("p", ["0.9", ""])
    with pytest.raises(InputError, match="response 0 cannot be scored: the model returned"):
        model.score("p", [BROKEN, "0.9"])
    with pytest.raises(InputError, match="responses must be a list of strings, got one string"):
        model.score("p", "0.9")
    with pytest.raises(ConfigError, match="'max' is not defined"):
        ProcessRewardModel(fake_scorer(), by="max")
