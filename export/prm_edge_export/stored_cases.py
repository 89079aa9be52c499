"""The cases a package keeps for its self-test, and how far a variant may be from them.

In: what the proof compared, or the cases a package has already. Out: cases, and two limits of the
variant's proof: the largest allowed |dp| of a score, and of a kind of error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from prm_edge_runtime import Scorer
from prm_edge_runtime.manifest import SELFTEST_NAME
from prm_edge_runtime.package import Package
from prm_edge_runtime.selftest import (
    KINDS_TOLERANCE_KEY,
    TOLERANCE_KEY,
    Case,
    check,
    check_kinds,
    load_cases,
)

from .proof import BUDGETS, Compared

KEPT: Final = 4
ROOM: Final = 2  # times what a variant is off by here: other machines round elsewhere
ANY: Final = sys.float_info.max  # and not infinity, which is how far a missing score is off


def of_package(existing: Package | None, results: Sequence[Compared]) -> list[Case]:
    """The cases that a package has, or of a new one the shortest of what was compared.

    They are torch's scores, the same for every variant; short, so that a check takes moments.
    """
    if existing is not None:
        return load_cases(existing.read_bytes(SELFTEST_NAME))
    by_length = sorted(results, key=lambda r: len(r.text.problem) + sum(map(len, r.text.steps)))
    return [
        Case(
            problem=r.text.problem,
            steps=r.text.steps,
            scores=tuple(float(score) for score in r.reference_scores),
            error_kinds=None
            if r.reference_kinds is None
            else tuple(tuple(row) for row in r.reference_kinds.tolist()),
        )
        for r in by_length[:KEPT]
    ]


def limits(scorer: Scorer, cases: Sequence[Case], precision: str) -> dict[str, float]:
    """What the self-test of this variant allows, from what it is off by at these very cases.

    Not from the largest difference anywhere in the proof: of a quantized variant that is so large,
    somewhere among hundreds of solutions, that no damage would exceed it.

    Raises:
        SelfTestError: when a score or a kind that the cases have is missing.
    """
    budget = BUDGETS[precision]
    results = [scorer.score(case.problem, case.steps) for case in cases]
    scores = iter(results)
    off = check(cases, lambda problem, steps: next(scores).scores, ANY)
    found = {TOLERANCE_KEY: max(budget.tolerance, ROOM * off)}
    if scorer.package.manifest.error_kinds:
        off = check_kinds(cases, [result.kinds for result in results], ANY)
        found[KINDS_TOLERANCE_KEY] = max(budget.kinds_tolerance, ROOM * off)
    return found
