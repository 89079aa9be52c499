"""Stored cases with the scores torch gave, to check a package on the machine it runs on.

In: the bytes of ``selftest.json``. Out: the cases, and the largest difference from them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import PackageFormatError, SelfTestError, VariantError
from .json_file import decode_json
from .kinds import StepKinds
from .manifest import SELFTEST_NAME, Variant
from .results import StepScores
from .strict import Fields, Problems

# in a variant's proof: largest allowed |dp| of the scores, and of the kinds of error
TOLERANCE_KEY = "self_test_tolerance"
KINDS_TOLERANCE_KEY = "self_test_kinds_tolerance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One record and its reference scores, one per step.

    ``error_kinds``: for each step the probability of every kind of error, in the order of
    :func:`.kinds.known_kinds`; None, and the key is absent, where the package names none.
    """

    problem: str
    steps: tuple[str, ...]
    scores: tuple[float, ...]
    error_kinds: tuple[tuple[float, ...], ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        named = (
            {} if self.error_kinds is None else {"error_kinds": list(map(list, self.error_kinds))}
        )
        return {
            "problem": self.problem,
            "steps": list(self.steps),
            "scores": list(self.scores),
            **named,
        }


def dump_cases(cases: Sequence[Case]) -> bytes:
    """The bytes of ``selftest.json``."""
    data = {"cases": [case.to_dict() for case in cases]}
    return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def load_cases(raw: bytes) -> list[Case]:
    """Read ``selftest.json``.

    Raises:
        PackageFormatError: when it is not what :func:`dump_cases` writes.
    """
    problems = Problems()
    fields = Fields(decode_json(raw, SELFTEST_NAME), SELFTEST_NAME, problems)
    cases = []
    for index, item in enumerate(fields.items("cases")):
        inner = Fields(item, f"selftest.json.cases[{index}]", problems)
        case = Case(
            problem=inner.text("problem"),
            steps=inner.list_of("steps", str, "strings"),
            scores=inner.numbers("scores"),
            error_kinds=_error_kinds(inner),
        )
        inner.finish()
        if len(case.steps) != len(case.scores):
            problems.add(inner.where, "must have one score per step")
        if case.error_kinds is not None and len(case.error_kinds) != len(case.steps):
            problems.add(inner.where, "must have one entry of error_kinds per step")
        cases.append(case)
    fields.finish()
    if not problems.found and not any(case.steps for case in cases):
        problems.add(f"{SELFTEST_NAME}.cases", "must hold at least one case with a step")
    problems.raise_if_any(PackageFormatError, "the self-test cannot be read")
    return cases


def up_to_blank(cases: Sequence[Case]) -> list[Case]:
    """What a session takes of each case: the steps before the first blank one."""
    found = []
    for case in cases:
        blank = (at for at, step in enumerate(case.steps) if not step.strip())
        end = next(blank, len(case.steps))
        found.append(Case(problem=case.problem, steps=case.steps[:end], scores=case.scores[:end]))
    return found


def run(
    raw: bytes,
    variant: Variant,
    score: Callable[[str, Sequence[str]], StepScores],
    in_session: Callable[[str, Sequence[str]], Sequence[float | None]] | None = None,
) -> float:
    """Score the cases of ``selftest.json``; return the largest |difference| of a score.

    ``in_session``: scores of a session, compared too, where its steps are run in their own way.

    Raises:
        PackageFormatError: as :func:`load_cases`.
        VariantError: when the variant does not say what it allows.
        SelfTestError: as :func:`check` and :func:`check_kinds`.
    """
    cases, results = load_cases(raw), list[StepScores]()
    tolerance = _tolerance(variant, TOLERANCE_KEY)

    def scores(problem: str, steps: Sequence[str]) -> tuple[float | None, ...]:
        results.append(score(problem, steps))
        return results[-1].scores

    worst = check(cases, scores, tolerance)
    if in_session is not None:
        worst = max(worst, check(up_to_blank(cases), in_session, tolerance))
    if any(result.kinds is not None for result in results):
        kinds = [result.kinds for result in results]
        check_kinds(cases, kinds, _tolerance(variant, KINDS_TOLERANCE_KEY))
    return worst


def _tolerance(variant: Variant, key: str) -> float:
    found = variant.proof.get(key)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise VariantError(
            f"variant {variant.name!r} records no {key}, so its self-test cannot be judged; export "
            "the checkpoint again"
        )
    return float(found)


def _error_kinds(fields: Fields) -> tuple[tuple[float, ...], ...] | None:
    if not fields.has("error_kinds"):
        return None
    rows = fields.items("error_kinds")
    where = f"{fields.where}.error_kinds"
    each = (Fields({"": row}, f"{where}[{at}]", fields.problems) for at, row in enumerate(rows))
    return tuple(inner.numbers("") for inner in each)


def check(
    cases: Sequence[Case],
    score: Callable[[str, Sequence[str]], Sequence[float | None]],
    tolerance: float,
) -> float:
    """Score every case and return the largest |difference| from the reference.

    Raises:
        SelfTestError: when it exceeds ``tolerance``.
    """
    worst = 0.0
    for index, case in enumerate(cases):
        scores = score(case.problem, case.steps)
        for step, (expected, got) in enumerate(zip(case.scores, scores, strict=True)):
            difference = abs(expected - got) if got is not None else float("inf")
            worst = max(worst, difference)
            if not difference <= tolerance:
                raise SelfTestError(
                    f"self-test case {index}, step {step}: expected {expected:.6f}, got "
                    f"{got if got is None else round(got, 6)} (allowed difference "
                    f"{tolerance:g}): this machine does not reproduce the model; do not trust "
                    "its scores, and report the processor and onnxruntime version"
                )
    return worst


def check_kinds(
    cases: Sequence[Case], found: Sequence[StepKinds | None], tolerance: float
) -> float:
    """Compare the kinds of error of every case that has some with the reference.

    ``found``: of each case. Returns the largest |difference| of a probability.

    Raises:
        SelfTestError: when it exceeds ``tolerance``, or the cases are of other kinds.
    """
    worst = 0.0
    for index, (case, kinds) in enumerate(zip(cases, found, strict=True)):
        got = () if kinds is None else kinds.probabilities
        for step, (expected, row) in enumerate(zip(case.error_kinds or (), got, strict=False)):
            if row is None or len(row) != len(expected):
                raise SelfTestError(
                    f"self-test case {index}, step {step}, has {len(expected)} kinds of error and "
                    f"the package {0 if row is None else len(row)}; export the checkpoint again"
                )
            each = [abs(a - b) for a, b in zip(expected, row, strict=True)]
            difference = max(each)
            worst = max(worst, difference)
            if not all(one <= tolerance for one in each):
                raise SelfTestError(
                    f"self-test case {index}, step {step}: the probability of a kind of error is "
                    f"off by {difference:.6f} (allowed difference {tolerance:g}): this machine "
                    "does not reproduce the model; do not trust what it names, and report the "
                    "processor and onnxruntime version"
                )
    return worst
