"""The embedded default says when a record is not its business; a named package never does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_edge_runtime.domain import Domain, units
from prm_edge_runtime.errors import InputError, PackageError
from prm_edge_runtime.package import open_package
from prm_edge_runtime.results import OUT_OF_DOMAIN, SCORED
from prm_edge_runtime.scorer import Scorer

SCHOOL = Domain(
    known=frozenset(units("solve for so take from both sides : = + - ( ) .")), max_unknown=0.2
)
INSIDE = ("Solve for x: 5 - 2(x - 3) = 1", ["5 - 2x + 6 = 1", "Take 11 from both sides: -2x = -10"])
OUTSIDE = ("Prove Euler's criterion", ["Let p be an odd prime", "then a^((p-1)/2) is a unit mod 7"])


def test_units_are_words_commands_and_signs() -> None:
    assert units(r"Solve 3x+\frac{1}{2} = Ωmega 求解") == [
        "Solve", "+", r"\frac", "{", "}", "{", "}", "=", "Ωmega", "求解",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("problem", "steps", "reason"),
    [
        ("Solve for x: 3x = 15", ["x = 5"], None),
        ("Solve for x: 3x = 15", ["Take it from there: x = 5"], "2 of its 8 words and signs"),
        ("3x = 15", ["x = 5"], None),
        ("Zoe take 3 from Ben", ["Ben = 5 - 3"], None),  # names are not counted
        ("3x = 15", ["求解"], "1 of its 2 words and signs are new: 求解"),
        ("Who was it", ["George"], "holds no number"),
        ("1", ["aa bb cc dd ee ff"], "aa, bb, cc, dd, ee, ..."),
    ],
)
def test_outside_names_what_is_new(problem: str, steps: list[str], reason: str | None) -> None:
    found = SCHOOL.outside(problem, steps)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert reason in found


@given(st.text(), st.lists(st.text(), max_size=4))
def test_outside_reads_any_text(problem: str, steps: list[str]) -> None:
    found = SCHOOL.outside(problem, steps)
    assert found is None or found


def test_json_comes_back_as_it_was() -> None:
    assert Domain.from_json(SCHOOL.to_json()) == SCHOOL


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"known": "abc", "max_unknown": 0.1}',
        b'{"known": [1], "max_unknown": 0.1}',
        b'{"known": [""], "max_unknown": 0.1}',
        b'{"known": [], "max_unknown": 1.5}',
        b'{"known": [], "max_unknown": true}',
        b'{"known": [], "max_unknown": 0.1, "more": 1}',
        b"\xff",
    ],
)
def test_json_that_is_something_else_is_refused(content: bytes) -> None:
    with pytest.raises(PackageError, match=r"domain\.json must hold known"):
        Domain.from_json(content)


@pytest.fixture
def guarded() -> Scorer:
    """The embedded package with a domain of this test."""
    with Scorer.load() as scorer:
        variant = scorer.package.variant(scorer.variant)
        return Scorer(scorer.package, variant, scorer._open_engine(), "embedded", SCHOOL)


def test_score_gives_nulls_with_a_status(guarded: Scorer) -> None:
    result = guarded.score(*OUTSIDE)
    assert result.scores == (None, None)
    assert result.status == (OUT_OF_DOMAIN,) * 2
    assert (result.verdict, result.first_error, result.n_tokens_run) == ("unknown", None, 0)
    assert result.n_tokens > 0
    assert guarded.score(*INSIDE).status == (SCORED,) * 2
    assert guarded.score_many([INSIDE, OUTSIDE])[1] == result


def test_rank_scores_the_candidates_inside(guarded: Scorer) -> None:
    ranking = guarded.rank(INSIDE[0], [INSIDE[1], ["Let ε be arbitrarily small and compact: 1"]])
    assert ranking.candidates[0] == guarded.score(*INSIDE)
    assert ranking.candidates[1].status == (OUT_OF_DOMAIN,)
    assert ranking.best == 0


def test_self_test_needs_no_domain(guarded: Scorer) -> None:
    nothing = Domain(known=frozenset(), max_unknown=0.0)
    variant = guarded.package.variant(guarded.variant)
    strict = Scorer(guarded.package, variant, guarded._open_engine(), "embedded", nothing)
    assert strict.score(*INSIDE).status == (OUT_OF_DOMAIN,) * 2
    assert strict.self_test() == guarded.self_test() < 1e-3


def test_session_refuses_a_line_outside_and_goes_on(guarded: Scorer) -> None:
    with guarded.session(INSIDE[0]) as session:
        with pytest.raises(InputError, match=r"outside what .* trained on.*--force"):
            session.add("Let ε be arbitrarily small and compact: 1")
        scores = [session.add(step) for step in INSIDE[1]]
    assert tuple(scores) == guarded.score(*INSIDE).scores


def test_the_embedded_package_is_guarded_unless_named_or_forced() -> None:
    outside = ("The integral of e^x over a compact manifold", ["By Stokes' theorem it vanishes: 0"])
    with Scorer.load() as scorer:
        assert scorer.score(*outside).status == (OUT_OF_DOMAIN,)
        assert "manifold" in (scorer.outside(*outside) or "")
        root = scorer.package.root
    with Scorer.load(force=True) as forced, Scorer.load(root) as named:
        assert forced.score(*outside).status == named.score(*outside).status == (SCORED,)


def test_the_shipped_examples_are_inside() -> None:
    lines = Path(__file__).parents[1].joinpath("examples/school.jsonl").read_text("utf-8")
    with Scorer.load() as scorer:
        for record in map(json.loads, lines.splitlines()):
            for steps in record.get("candidates") or [record["steps"]]:
                assert scorer.outside(record["problem"], steps) is None
    assert open_package(root := scorer.package.root).root == root
