"""Records longer than the model: an error, nulls, or windows that say so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from session_scorers import KINDS, Bidirectional, make, make_kind, with_engine

from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import ConfigError, InputError
from prm_edge_runtime.lengths import fit

PROBLEM = "How much do 20 apples cost?"
STEPS = [f"step {n}: {n} apples cost {n * 25} cents" for n in range(12)]
LIMIT = 80


@pytest.fixture(scope="module", params=[*KINDS, "encoder"])
def scorer(request: pytest.FixtureRequest, tiny_package: Path) -> Iterator[Scorer]:
    """Under a limit that a few steps reach."""
    if request.param == "encoder":
        yield with_engine(tiny_package, Bidirectional(), max_tokens=LIMIT)
        return
    with make_kind(request.param, max_tokens=LIMIT) as made:
        yield made


def test_too_long_is_an_error_unless_asked_otherwise(scorer: Scorer) -> None:
    whole = scorer.score(PROBLEM, STEPS, on_too_long="null")
    at = len(STEPS) if None not in whole.scores else STEPS.index(STEPS[fitting(scorer)])
    match = rf"^step {at} of 12 .* ends at token \d+, beyond the 80 that .*on_too_long='null'"
    with pytest.raises(InputError, match=match):
        scorer.score(PROBLEM, STEPS)
    with pytest.raises(InputError, match=r"^item 2: step \d"):
        scorer.score_many([(PROBLEM, STEPS[:1]), (PROBLEM, []), (PROBLEM, STEPS)])
    with pytest.raises(InputError, match=r"^candidates\[1\]: step \d"):
        scorer.rank(PROBLEM, [STEPS[:1], STEPS])
    assert scorer.score(PROBLEM, STEPS[:1]).status == ("scored",)


def fitting(scorer: Scorer) -> int:
    """How many steps fit, found without the code under test."""
    count = 0
    while len(scorer._encoder.encode(PROBLEM, STEPS[: count + 1]).ids) <= scorer.max_tokens:
        count += 1
    return count


def test_null_keeps_what_a_causal_model_can_score(scorer: Scorer) -> None:
    count = fitting(scorer) if scorer._open_engine().causal else 0
    result = scorer.score(PROBLEM, STEPS, on_too_long="null")
    assert result.status == ("scored",) * count + ("too_long",) * (12 - count)
    assert [score is None for score in result.scores] == [False] * count + [True] * (12 - count)
    if count:
        assert result.scores[:count] == scorer.score(PROBLEM, STEPS[:count]).scores
    ranking = scorer.rank(PROBLEM, [STEPS, STEPS[:1]], on_too_long="null")
    assert ranking.candidates[0] == result
    assert ranking.best == 1


def test_window_scores_the_tail_and_marks_it(scorer: Scorer) -> None:
    count = fitting(scorer) if scorer._open_engine().causal else 0
    result = scorer.score(PROBLEM, STEPS, on_too_long="window")
    assert result.status == ("scored",) * count + ("windowed",) * (12 - count)
    assert None not in result.scores
    assert result.aggregate() is not None
    assert result.n_tokens == len(scorer._encoder.encode(PROBLEM, STEPS).ids)
    # every step of the tail has the score of a record of the problem and steps around it
    for at in range(count, 12):
        around = [
            scorer.score(PROBLEM, STEPS[first:last]).scores[at - first]
            for first in range(at + 1)
            for last in range(at + 1, 13)
            if len(scorer._encoder.encode(PROBLEM, STEPS[first:last]).ids) <= LIMIT
        ]
        assert result.scores[at] in around
    assert scorer.score_many([(PROBLEM, STEPS)] * 2, on_too_long="window") == [result] * 2
    assert scorer.rank(PROBLEM, [STEPS], on_too_long="window").candidates == (result,)
    short = scorer.score(PROBLEM, STEPS[:1], on_too_long="window")
    assert (short, short.status) == (scorer.score(PROBLEM, STEPS[:1]), ("scored",))


def test_window_without_room_gives_null(scorer: Scorer) -> None:
    steps = [STEPS[0], "y" * 200, STEPS[1], STEPS[2]]
    result = scorer.score(PROBLEM, steps, on_too_long="window")
    first = "scored" if scorer._open_engine().causal else "windowed"
    assert result.status == (first, "too_long", "windowed", "windowed")
    assert [score is None for score in result.scores] == [False, True, False, False]
    # nothing before it fits beside the step that is too long
    together = steps[2:3] if scorer._open_engine().causal else steps[2:]
    assert result.scores[2] == scorer.score(PROBLEM, together).scores[0]
    assert result.verdict in ("unknown", "flawed")
    nowhere = scorer.score("x" * 200, STEPS[:3], on_too_long="window")
    assert nowhere.status == ("too_long",) * 3
    assert nowhere.n_tokens_run == 0


@given(
    lengths=st.lists(st.integers(0, 90), max_size=12),
    problem=st.integers(0, 70),
    limit=st.integers(30, 120),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_window_parts(scorer: Scorer, lengths: list[int], problem: int, limit: int) -> None:
    text, steps = "p" * problem, [f"{n}" + "y" * length for n, length in enumerate(lengths)]
    encoder = scorer._encoder
    options: dict[str, Any] = {
        "max_tokens": limit,
        "causal": scorer._open_engine().causal,
        "on_too_long": "window",
    }
    parts = fit(encoder, text, steps, encoder.encode(text, steps), **options)
    scored: list[int] = []
    for part in parts:
        count = len(part.record.reads)
        own = range(part.first + part.context, part.first + count)
        assert not count or len(part.record.ids) <= limit
        assert part.context < count or not steps or (not own and part.first == 0)
        whole = encoder.encode(text, steps[part.first : part.first + count])
        assert part.record.ids.tolist() == whole.ids.tolist()
        scored += own
    # each step once at most, in order; those that are missing do not fit even alone
    assert scored == sorted(set(scored))
    for at in set(range(len(steps))) - set(scored):
        assert len(encoder.encode(text, [steps[at]]).ids) > limit


@pytest.mark.parametrize("wrong", ["cut", "", None, 5, ["null"]])
def test_policy_of_another_name(wrong: Any, tiny_package: Path) -> None:
    made = make(tiny_package)
    match = r"^on_too_long must be one of error, null, window; got "
    for use in (
        lambda: made.score(PROBLEM, STEPS, on_too_long=wrong),
        lambda: made.score_many([], on_too_long=wrong),
        lambda: made.rank(PROBLEM, [STEPS], on_too_long=wrong),
    ):
        with pytest.raises(ConfigError, match=match):
            use()
