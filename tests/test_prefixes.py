"""The prefix cache: changes no bit, stays within its bytes, and says how often it helped."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from session_scorers import KINDS, Bidirectional, Counter, make, make_kind

from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import ConfigError
from prm_edge_runtime.package import open_package
from prm_edge_runtime.prefixes import PrefixCache, PrefixCounters, _size

PROBLEM = "A shop sells 12 apples for $3. How much do 20 apples cost?"
STEPS = ["3 / 12 = 0.25", "20 * 0.25 = 5", "So $5."]
LIMIT_MB = 0.06  # so little that things are pushed out: 256 bytes a token in the frozen package
UNIQUE = itertools.count()


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Scorer, Scorer, Counter]]:
    with (
        make_kind(request.param, prefix_cache_mb=LIMIT_MB) as cached,
        make_kind(request.param) as plain,
    ):
        yield cached, plain, Counter(cached)


def prefixes_of(scorer: Scorer) -> PrefixCache:
    assert scorer._prefixes is not None
    return scorer._prefixes


def check_bounds(scorer: Scorer) -> None:
    prefixes = prefixes_of(scorer)
    counters = scorer.prefix_cache
    assert counters.bytes == sum(_size(key, node) for key, node in prefixes._nodes.items())
    assert counters.bytes <= counters.limit_bytes
    assert counters.entries == len(prefixes._nodes)
    for key, node in prefixes._nodes.items():  # no node without those before it
        if node.parent is not None:
            assert any(key.startswith(other) for other in prefixes._nodes if other != key)


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
calls = st.lists(
    st.tuples(
        st.sampled_from(["score", "score_many", "rank", "session"]),
        st.sampled_from([PROBLEM, "1 + 1?", ""]),
        st.lists(st.one_of(words, st.sampled_from(STEPS)), max_size=4),
    ),
    min_size=1,
    max_size=6,
)


@given(calls=calls)
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_prefix_cache_changes_no_bit(
    pair: tuple[Scorer, Scorer, Counter], calls: list[tuple[str, str, list[str]]]
) -> None:
    cached, plain, counter = pair
    for kind, problem, steps in calls:
        before = counter.tokens
        alone = plain.score(problem, steps)
        if kind == "session":
            taken = [step if step.strip() else "x" for step in steps]
            with cached.session(problem) as session:
                for step in taken:
                    session.add(step)
                assert session.scores == plain.score(problem, taken).scores
                n_run = session.n_tokens_run
        else:
            results: dict[str, Any] = {
                "score": lambda p, s: [cached.score(p, s)],
                "score_many": lambda p, s: cached.score_many([(p, s)]),
                "rank": lambda p, s: list(cached.rank(p, [s, s]).candidates),
            }
            found = results[kind](problem, steps)
            assert [result.logits for result in found] == [alone.logits] * len(found)
            assert found == [alone] * len(found)
            n_run = sum(result.n_tokens_run for result in found)
        assert counter.tokens - before == n_run
        check_bounds(cached)


def test_prefix_cache_counts_what_it_saved(tiny_package: Path) -> None:
    made = make(tiny_package, prefix_cache_mb=10)
    counter = Counter(made)
    prompt = len(made._encoder.encode_prompt(PROBLEM))
    first = made.score(PROBLEM, STEPS[:2])
    assert first.n_tokens_run == first.n_tokens
    assert made.prefix_cache == PrefixCounters(
        lookups=1, entries=3, bytes=made.prefix_cache.bytes, limit_bytes=10_000_000
    )
    again = made.score(PROBLEM, STEPS)
    assert again.n_tokens_run == again.n_tokens - first.n_tokens
    other = made.score(PROBLEM, [f"another {next(UNIQUE)}"])
    assert other.n_tokens_run == other.n_tokens - prompt
    session = made.session(PROBLEM)
    assert (session.n_tokens, session.n_tokens_run) == (prompt, 0)
    session.add(STEPS[0])
    counters = made.prefix_cache
    assert (counters.lookups, counters.hits) == (4, 3)
    assert counters.tokens_saved == first.n_tokens + 2 * prompt
    assert counter.tokens == counter_sum([first, again, other]) + session.n_tokens_run
    # the same tokens again: nothing is run, and the scores are those that were stored
    assert made.score(PROBLEM, STEPS).n_tokens_run == 0


def counter_sum(results: list[Any]) -> int:
    return sum(result.n_tokens_run for result in results)


def test_prefix_cache_forgets_what_was_used_least(tiny_package: Path) -> None:
    made = make(tiny_package, prefix_cache_mb=0.03)
    problems = [f"problem number {n} of many" for n in range(20)]
    for problem in problems:
        made.score(problem, ["x = 4"])
        made.score(problems[0], ["x = 4"])  # always in use
    check_bounds(made)
    assert made.prefix_cache.entries < 40
    assert made.score(problems[0], ["x = 4"]).n_tokens_run == 0
    assert made.score(problems[-1], ["x = 4"]).n_tokens_run == 0
    result = made.score(problems[1], ["x = 4"])
    assert result.n_tokens_run == result.n_tokens


def test_prefix_cache_keeps_what_is_there_when_one_record_is_larger(tiny_package: Path) -> None:
    made = make(tiny_package, prefix_cache_mb=0.03)
    made.score("1 + 1?", ["2"])
    made.score("x" * 400, ["y"])
    assert made.score("1 + 1?", ["2"]).n_tokens_run == 0
    session = make(tiny_package, prefix_cache_mb=0.001).session("x" * 100)
    assert session.n_tokens_run == session.n_tokens


def test_prefix_cache_tells_other_steps_of_the_same_tokens_apart(tiny_package: Path) -> None:
    made, plain = make(tiny_package, prefix_cache_mb=10), make(tiny_package)
    for steps in (["a\nb"], ["a", "b"], ["a\nb"], ["a"]):
        assert made.score(PROBLEM, steps) == plain.score(PROBLEM, steps)


def test_prefix_cache_is_off_by_default(tiny_package: Path) -> None:
    made = Scorer.load(tiny_package)
    assert made.score(PROBLEM, STEPS).n_tokens_run == made.score(PROBLEM, STEPS).n_tokens_run > 0
    assert made.prefix_cache == PrefixCounters()
    loaded = Scorer.load(tiny_package, prefix_cache_mb=1.5)
    loaded.score(PROBLEM, STEPS)
    assert loaded.prefix_cache.limit_bytes == 1_500_000
    loaded.close()
    assert loaded.prefix_cache == PrefixCounters()


def test_prefix_cache_of_an_encoder_stays_empty(tiny_package: Path) -> None:
    opened = open_package(tiny_package)
    made = Scorer(
        opened, opened.manifest.variants[0], Bidirectional(), "argument", prefix_cache_mb=1
    )
    assert made.score(PROBLEM, STEPS).n_tokens_run == made.score(PROBLEM, STEPS).n_tokens_run
    assert made.prefix_cache == PrefixCounters()


@pytest.mark.parametrize("wrong", [-1, True, "64", None, float("nan"), float("inf"), 1 << 21])
def test_prefix_cache_mb_of_another_kind(wrong: Any, tiny_package: Path) -> None:
    match = r"^prefix_cache_mb must be a number of megabytes from 0 \(off\) to 1048576; got "
    with pytest.raises(ConfigError, match=match):
        Scorer.load(tiny_package, prefix_cache_mb=wrong)
