"""Batches equal single calls to the bit, in order, within bounded memory, from many threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from session_scorers import KINDS, Counter, make, make_kind

from prm_edge_runtime import Scorer
from prm_edge_runtime import scorer as scorer_module
from prm_edge_runtime.engine import RUN_TOKENS, TILE, DecoderEngine
from prm_edge_runtime.errors import InputError

PROBLEMS = ["A shop sells 12 apples for $3. How much do 20 apples cost?", "1 + 1?", "A shop", ""]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=24)
STEPS = st.lists(st.one_of(TEXT, st.sampled_from(["2x = 8", "x = 4", "\n"])), max_size=5)
LONG = "so we add one more apple, which costs 15 cents, and " * 2
UNIQUE = itertools.count()


@pytest.fixture(scope="module", params=KINDS)
def scorer(request: pytest.FixtureRequest) -> Iterator[Scorer]:
    with make_kind(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def counter(scorer: Scorer) -> Counter:
    return Counter(scorer)


def of_other_lengths() -> list[tuple[str, list[str]]]:
    """Rows of every length modulo the tile, pieces of long ones, and what begins alike."""
    rows = [(f"{n}" * n, [f"{next(UNIQUE)} {'y' * n}"]) for n in range(2, 2 + 2 * TILE)]
    long = [(PROBLEMS[0], [f"{LONG}{n}"] * 4) for n in range(2)]
    assert len(rows) > TILE
    return [*rows, *long, (PROBLEMS[1], []), (PROBLEMS[0], ["2x = 8", "\n", f"{LONG}0"])]


def test_score_many_is_exact_at_every_length(scorer: Scorer, counter: Counter) -> None:
    items = of_other_lengths()
    alone = [scorer.score(*item) for item in items]
    assert max(result.n_tokens for result in alone) > RUN_TOKENS
    tokens, runs = counter.tokens, counter.runs
    many = scorer.score_many(items)
    assert [result.logits for result in many] == [result.logits for result in alone]
    assert many == alone
    assert sum(result.n_tokens_run for result in many) == counter.tokens - tokens
    assert counter.tokens - tokens < sum(result.n_tokens_run for result in alone)
    assert counter.runs - runs < len(items)  # some of them were rows of one run


@given(items=st.lists(st.tuples(st.sampled_from(PROBLEMS), STEPS), max_size=8))
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_score_many_is_exact_whatever_there_is(
    scorer: Scorer, items: list[tuple[str, list[str]]]
) -> None:
    assert scorer.score_many(items, on_too_long="null") == [
        scorer.score(*item, on_too_long="null") for item in items
    ]


def test_score_many_looks_ahead_within_bounds(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tiny_package)
    counter = Counter(made)
    pulled = 0

    finished = 0
    run = made._run

    def items(limit: int) -> Iterator[tuple[str, list[str]]]:
        nonlocal pulled
        for number in range(40):
            assert pulled - finished < limit
            pulled += 1
            yield f"problem {number}", [f"x = {number}"]

    def noted(prepared: Any) -> Any:
        nonlocal finished
        finished += len(prepared)
        return run(prepared)

    monkeypatch.setattr(made, "_run", noted)
    for limit, name, value in ((7, "AHEAD_RECORDS", 7), (4, "AHEAD_TOKENS", 45)):
        with monkeypatch.context() as patched:
            patched.setattr(scorer_module, name, value)
            pulled = finished = 0
            assert len(made.score_many(items(limit))) == 40 == finished
    assert counter.runs


def test_no_run_is_larger_than_the_budget(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tiny_package)
    engine = made._engine
    assert isinstance(engine, DecoderEngine)
    sizes: list[int] = []
    rows, append = engine.run_rows, engine._append

    def noted_rows(given: Any) -> Any:
        sizes.append(len(given) * max(len(ids) for ids, _ in given))
        return rows(given)

    def noted_append(cache: Any, past: int, ids: Any, reads: Any) -> Any:
        sizes.append(len(ids))
        return append(cache, past, ids, reads)

    monkeypatch.setattr(engine, "run_rows", noted_rows)
    monkeypatch.setattr(engine, "_append", noted_append)
    made.score_many([*of_other_lengths(), ("x" * 300, ["y" * 100])])
    made.rank(PROBLEMS[0], [[LONG + "a"] * 5, [LONG + "b"] * 5])
    assert max(sizes) == RUN_TOKENS


def test_score_many_names_the_item_that_is_too_long(tiny_package: Path) -> None:
    made = make(tiny_package, max_tokens=30)
    with pytest.raises(InputError, match=r"^item 1: step 0 of 1 .* beyond the 30 that this pack"):
        made.score_many([("1", ["2"]), ("1", ["2" * 50])])


def test_sixteen_threads_get_the_same_numbers(tiny_package: Path) -> None:
    made = make(tiny_package, prefix_cache_mb=0.2)
    plain = make(tiny_package)
    work = [(PROBLEMS[n % 2], [f"step {n % 5}", f"{n} apples"], f"x = {n}") for n in range(16)]
    start = threading.Barrier(len(work))
    found: list[Any] = [None] * len(work)

    def one(number: int) -> None:
        problem, steps, other = work[number]
        start.wait(60)
        many = made.score_many([(problem, steps), (problem, [other]), (problem, steps)])
        ranking = made.rank(problem, [steps, [other]])
        with made.session(problem) as session:
            for step in steps:
                session.add(step)
            found[number] = (many, ranking.candidates, session.scores, session.peek([other]))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for (problem, steps, other), got in zip(work, found, strict=True):
        whole, short = plain.score(problem, steps), plain.score(problem, [other])
        last = plain.score(problem, [*steps, other]).scores[-1]
        assert got == ([whole, short, whole], (whole, short), whole.scores, [last])
    assert made.prefix_cache.bytes <= 200_000
