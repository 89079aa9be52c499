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
from .manifest import SELFTEST_NAME, Variant
from .strict import Fields, Problems

TOLERANCE_KEY = "self_test_tolerance"  # in a variant's proof: largest allowed |dp|


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One record and its reference scores, one per step."""

    problem: str
    steps: tuple[str, ...]
    scores: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "problem": self.problem,
            "steps": list(self.steps),
            "scores": list(self.scores),
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
        )
        inner.finish()
        if len(case.steps) != len(case.scores):
            problems.add(inner.where, "must have one score per step")
        cases.append(case)
    fields.finish()
    if not problems.found and not any(case.steps for case in cases):
        problems.add(f"{SELFTEST_NAME}.cases", "must hold at least one case with a step")
    problems.raise_if_any(PackageFormatError, "the self-test cannot be read")
    return cases


Score = Callable[[str, Sequence[str]], Sequence[float | None]]


def tolerance_of(variant: Variant) -> float:
    """What a package allows for a variant.

    Raises:
        VariantError: when it says nothing.
    """
    tolerance = variant.proof.get(TOLERANCE_KEY)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise VariantError(
            f"variant {variant.name!r} records no {TOLERANCE_KEY}, so its self-test cannot be "
            "judged; export the checkpoint again"
        )
    return float(tolerance)


def up_to_blank(cases: Sequence[Case]) -> list[Case]:
    """What a session takes of each case: the steps before the first blank one."""
    found = []
    for case in cases:
        blank = (at for at, step in enumerate(case.steps) if not step.strip())
        end = next(blank, len(case.steps))
        found.append(Case(problem=case.problem, steps=case.steps[:end], scores=case.scores[:end]))
    return found


def check(
    cases: Sequence[Case],
    score: Score,
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
