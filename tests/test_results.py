"""What scoring returns, and how candidates are ordered."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_edge_runtime.errors import ConfigError
from prm_edge_runtime.results import (
    OUT_OF_DOMAIN,
    SCORED,
    STATUSES,
    TOO_LONG,
    WINDOWED,
    StepScores,
    rank,
)

# beside a checkout, never in it
SHARED = str(Path(__file__).parents[2] / "shared" / "data")
SCORES = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0])), max_size=4)


def result(*scores: float | None, threshold: float = 0.5) -> StepScores:
    return StepScores(
        scores=scores,
        status=tuple(TOO_LONG if score is None else SCORED for score in scores),
        threshold=threshold,
        n_tokens=7,
        n_tokens_run=7,
        aggregates=("mean", "min"),
        default_aggregate="min",
        logits=tuple(None if score is None else (score,) for score in scores),
    )


def test_step_scores_is_frozen_data() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field"):
        result(0.1).scores = ()  # type: ignore[misc]
    assert not hasattr(result(0.1), "__dict__")
    assert result(0.1) == result(0.1) != result(0.2)
    assert len({result(0.1), result(0.1)}) == 1


def test_step_scores_repr_has_no_logits() -> None:
    assert "logits" not in repr(result(0.5))


def test_step_scores_derives_verdict_and_first_error() -> None:
    assert (result(0.9, 0.1).verdict, result(0.9, 0.1).first_error) == ("flawed", 1)
    assert (result(0.9, 0.6).verdict, result(0.9, 0.6).first_error) == ("sound", None)
    assert (result(0.9, None).verdict, result(0.9, None).first_error) == ("unknown", None)
    assert result(0.9, 0.6, threshold=0.7).first_error == 1
    assert set(STATUSES) == {SCORED, TOO_LONG, WINDOWED, OUT_OF_DOMAIN}


def test_step_scores_aggregate_is_the_recipes_own_by_default() -> None:
    assert result(0.9, 0.1).aggregate() == 0.1
    assert result(0.9, 0.1).aggregate("mean") == 0.5
    assert result(0.9, None).aggregate() is None
    assert result().aggregate() is None
    with pytest.raises(ConfigError, match="aggregate 'prod' is not defined"):
        result(0.9).aggregate("prod")
    with pytest.raises(ConfigError, match="aggregate '' is not defined"):
        result(0.9).aggregate("")


def test_rank_ties_keep_the_input_order() -> None:
    ranking = rank((result(0.3), result(0.7), result(0.3), result(0.7)), "min")
    assert ranking.order == (1, 3, 0, 2)
    assert ranking.best == 1


def test_rank_without_an_aggregate_comes_last() -> None:
    ranking = rank((result(None), result(), result(0.0), result(-3.0)), "min")
    assert ranking.order == (2, 3, 0, 1)
    assert ranking.best == 2
    assert ranking.best_sound is None


def test_rank_best_sound_is_the_first_sound_one() -> None:
    # the best mean has a step below the threshold
    ranking = rank((result(0.6, 0.6), result(1.0, 0.4), result(0.65, 0.6)), "mean")
    assert ranking.order == (1, 2, 0)
    assert ranking.best == 1
    assert ranking.best_sound == 2
    assert ranking.by == "mean"


def test_rank_of_nothing_known() -> None:
    ranking = rank((result(None), result()), "min")
    assert (ranking.order, ranking.best, ranking.best_sound) == ((0, 1), None, None)


def test_rank_of_no_candidates() -> None:
    assert (rank((), "min").order, rank((), "min").best) == ((), None)


def test_rank_refuses_an_aggregate_the_recipe_lacks() -> None:
    with pytest.raises(ConfigError, match="use one of mean, min"):
        rank((result(0.1),), "prod")


def test_rank_by_products_below_every_float() -> None:
    def long(*scores: float) -> StepScores:
        return dataclasses.replace(result(*scores), aggregates=("prod",), default_aggregate="prod")

    worse, better, zero = long(*[0.01] * 5000), long(*[0.02] * 5000), long(*[0.5] * 9, 0.0)
    assert [one.aggregate() for one in (worse, better, zero)] == [0.0] * 3
    assert rank((zero, worse, better, worse), "prod").order == (2, 1, 3, 0)


def best_of_32() -> list[list[dict[str, Any]]]:
    """60 problems x 32 candidates with the scores of a published PRM, in their own order."""
    path = Path(os.environ.get("PRM_EDGE_TEST_DATA", SHARED)) / "bon_gsm8k_dev.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in PRM_EDGE_TEST_DATA")
    problems: dict[str, list[dict[str, Any]]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            problems.setdefault(record["problem"], []).append(record)
    return list(problems.values())


def test_rank_picks_what_was_published_with_real_scores() -> None:
    problems = best_of_32()
    expected = {"min": 0.8833, "last": 0.9167, "mean": 0.8667, "prod": 0.8833}
    for by, accuracy in expected.items():
        right = 0
        for records in problems:
            scored = tuple(
                dataclasses.replace(
                    result(*record["prm_scores"]["qwen_prm"]), aggregates=tuple(expected)
                )
                for record in records
            )
            best = rank(scored, by).best
            assert best is not None
            right += records[best]["final_answer_correct"]
        assert right / len(problems) == pytest.approx(accuracy, abs=5e-5), by


@given(st.lists(SCORES, max_size=6), st.sampled_from(["min", "mean"]))
@settings(max_examples=50, deadline=None)
def test_rank_properties(many: list[list[float | None]], by: str) -> None:
    candidates = tuple(result(*scores) for scores in many)
    ranking = rank(candidates, by)
    assert ranking.candidates == candidates
    assert sorted(ranking.order) == list(range(len(many)))
    values = [candidates[index].aggregate(by) for index in ranking.order]
    known = [value for value in values if value is not None]
    assert values[: len(known)] == sorted(known, reverse=True)
    for (a, first), (b, second) in zip(
        list(zip(ranking.order, values, strict=True))[:-1],
        list(zip(ranking.order, values, strict=True))[1:],
        strict=True,
    ):
        assert first != second or a < b
    assert ranking.best == (ranking.order[0] if known else None)
    sound = [index for index in ranking.order if candidates[index].verdict == "sound"]
    assert ranking.best_sound == (sound[0] if sound else None)
