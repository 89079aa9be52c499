"""The stored cases of a package: written, read, and compared."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_edge_runtime.errors import PackageFormatError, SelfTestError
from prm_edge_runtime.kinds import StepKinds
from prm_edge_runtime.selftest import Case, check, check_kinds, dump_cases, load_cases

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
CASES = st.lists(
    st.lists(st.tuples(TEXT, st.floats(-1e9, 1e9)), max_size=3).flatmap(
        lambda steps: st.builds(
            lambda problem: Case(
                problem=problem,
                steps=tuple(text for text, _ in steps),
                scores=tuple(score for _, score in steps),
            ),
            TEXT,
        )
    ),
    min_size=1,
    max_size=3,
).filter(lambda cases: any(case.steps for case in cases))
CASE = Case(problem="p", steps=("a", "b"), scores=(0.25, 0.75))


@given(CASES)
@settings(max_examples=30, deadline=None)
def test_cases_survive_json_to_the_bit(cases: list[Case]) -> None:
    assert load_cases(dump_cases(cases)) == cases
    assert dump_cases(cases).endswith(b"}\n")


def _raw(**changes: Any) -> bytes:
    return json.dumps({"cases": [{**CASE.to_dict(), **changes}]}).encode()


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", r"^selftest\.json is not valid JSON"),
        (b"{", r"^selftest\.json is not valid JSON"),
        (b"\xff\xfe\x00", r"^selftest\.json is not UTF-8"),
        (b"[" * 200_000, r"^selftest\.json is nested too deeply"),
        (b'{"cases": [], "cases": []}', "the key 'cases' occurs twice"),
        (_raw(problem="\ud800"), r"^selftest\.json holds a lone surrogate"),
        (_raw(scores=[0.5, float("nan")]), "NaN is not a JSON number"),
        (b"[]", "must be an object, got a list"),
        (b"{}", "key 'cases' is missing"),
        (b'{"cases": {}}', r"selftest\.json\.cases: must be a list, got an object"),
        (b'{"cases": [1]}', r"cases\[0\]: must be an object, got an integer"),
        (_raw(extra=1), r"cases\[0\]: unknown key 'extra'"),
        (_raw(problem=None), r"cases\[0\]\.problem: must be a string, got null"),
        (_raw(steps="ab"), r"steps: must be a list, got a string"),
        (_raw(steps=["a", 1]), "steps: must hold only strings"),
        (_raw(scores=["a", 1]), "scores: must hold only finite numbers"),
        (_raw(scores=[0.5, None]), "scores: must hold only finite numbers"),
        (_raw(scores=[0.5, 10**400]), "scores: must hold only finite numbers"),
        (_raw(scores=[0.5]), "must have one score per step"),
        (json.dumps({"cases": [CASE.to_dict()], "x": 1}).encode(), "unknown key 'x'"),
        # nothing to compare must not pass as nothing that differs
        (b'{"cases": []}', r"selftest\.json\.cases: must hold at least one case with a step"),
        (_raw(steps=[], scores=[]), "must hold at least one case with a step"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_load_cases_refuses(raw: bytes, match: str) -> None:
    with pytest.raises(PackageFormatError, match=match):
        load_cases(raw)


def test_check_returns_the_largest_difference() -> None:
    got = {"p": [0.25, 0.5], "q": [0.25, 0.875]}
    cases = [CASE, Case(problem="q", steps=("a", "b"), scores=(0.25, 0.75))]
    assert check(cases, lambda problem, steps: got[problem], 0.25) == 0.25


def test_check_over_the_tolerance() -> None:
    said = r"case 1, step 0: expected 0\.250000, got 0\.5 \(allowed difference 0\.1\).*do not trust"
    with pytest.raises(SelfTestError, match=said):
        check([CASE, CASE], iter_scores([0.25, 0.75], [0.5, 0.75]), 0.1)


def test_check_a_step_without_a_score_fails() -> None:
    with pytest.raises(SelfTestError, match=r"case 0, step 1: expected 0\.750000, got None"):
        check([CASE], iter_scores([0.25, None]), 1e9)


@pytest.mark.parametrize("tolerance", [float("nan"), -1.0])
def test_check_a_tolerance_that_allows_nothing(tolerance: float) -> None:
    with pytest.raises(SelfTestError, match="allowed difference"):
        check([CASE], iter_scores([0.25, 0.75]), tolerance)


def iter_scores(*answers: list[float | None]) -> Any:
    queue = iter(answers)
    return lambda problem, steps: next(queue)


# --- kinds of error

NAMED = Case(
    problem="p", steps=("a", "b"), scores=(0.25, 0.75), error_kinds=((0.5, 0.5), (1.0, 0.0))
)


def found(*rows: tuple[float, ...] | None) -> StepKinds:
    return StepKinds(names=("sign", "slip"), probabilities=rows, every=True)


def test_cases_with_kinds_of_error_survive_json() -> None:
    assert load_cases(dump_cases([NAMED, CASE])) == [NAMED, CASE]
    assert b"error_kinds" not in dump_cases([CASE])


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([[0.5, 0.5]], "must have one entry of error_kinds per step"),
        ("x", r"error_kinds: must be a list, got a string"),
        ([[0.5, "x"], [1.0, 0.0]], r"error_kinds\[0\]\.: must hold only finite numbers"),
        ([0.5, [1.0, 0.0]], r"error_kinds\[0\]\.: must be a list, got a number"),
    ],
)
def test_cases_with_impossible_kinds_are_refused(rows: object, match: str) -> None:
    with pytest.raises(PackageFormatError, match=match):
        load_cases(_raw(error_kinds=rows))


def test_check_kinds_returns_the_largest_difference() -> None:
    kinds = [found((0.5, 0.5), (0.75, 0.25)), None]
    assert check_kinds([NAMED, CASE], kinds, 0.3) == 0.25
    with pytest.raises(SelfTestError, match=r"case 0, step 1: .* off by 0\.250000 \(allowed dif"):
        check_kinds([NAMED, CASE], kinds, 0.2)
    with pytest.raises(SelfTestError, match="does not reproduce the model; do not trust what it n"):
        check_kinds([NAMED], [found((float("nan"), 0.5), (1.0, 0.0))], 0.2)


def test_check_kinds_refuses_cases_of_other_kinds() -> None:
    other = [found((0.5, 0.25, 0.25), (1.0, 0.0, 0.0))]
    with pytest.raises(SelfTestError, match="has 2 kinds of error and the package 3; export the"):
        check_kinds([NAMED], other, 1.0)
    with pytest.raises(SelfTestError, match="has 2 kinds of error and the package 0; export the"):
        check_kinds([NAMED], [found(None, None)], 1.0)
