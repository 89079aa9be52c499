"""Families with heads and read rules of their own: their authors' procedures, in torch, as judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import family_checkpoints
import numpy as np
import torch_reference
from test_export_families import HARD, RECORDS, run

from prm_edge_runtime import Scorer

Judge = Callable[[Path, str, list[str]], list[float]]


def _validity(size: str) -> Judge:
    return lambda path, p, s: torch_reference.reasoneval_scores(path, p, s, size)[0]


@dataclass(frozen=True, kw_only=True)
class Case:
    """``named``: whether a language model says nowhere what it is, so that --recipe is needed."""

    maker: Callable[..., Path]
    judge: Judge
    changes: dict[str, Any] = field(default_factory=dict)
    named: bool = False
    strip: bool = True
    aggregate: str = "min"


CASES: dict[str, Case] = {
    "reasoneval-7b": Case(maker=family_checkpoints.reasoneval, judge=_validity("7B"), strip=False),
    "reasoneval-34b": Case(
        maker=family_checkpoints.reasoneval,
        judge=_validity("34B"),
        changes={"large": True},
        strip=False,
    ),
    "actprm": Case(
        maker=family_checkpoints.actprm,
        judge=torch_reference.actprm_scores,
        strip=False,
        aggregate="last",
    ),
    "pqm": Case(maker=family_checkpoints.pqm, judge=torch_reference.pqm_scores),
    "llemma": Case(maker=family_checkpoints.llemma, judge=torch_reference.llemma_scores),
    "er-prm": Case(
        maker=family_checkpoints.tagged, judge=torch_reference.er_prm_scores, named=True
    ),
    "versaprm": Case(
        maker=family_checkpoints.tagged, judge=torch_reference.versaprm_scores, named=True
    ),
    "math-psa": Case(
        maker=family_checkpoints.tagged,
        judge=torch_reference.math_psa_scores,
        changes={"qwen": True},
        named=True,
    ),
    "reasonflux-prm-1.5b": Case(
        maker=family_checkpoints.trajectory,
        judge=torch_reference.trajectory_scores,
        strip=False,
        aggregate="last",
    ),
}
LONG_ENOUGH = 12


def exported(name: str, folder: Path) -> tuple[Path, Scorer]:
    case = CASES[name]
    checkpoint = case.maker(folder / "tiny", **case.changes)
    scorer = run(checkpoint, folder / "pkg", recipe=name if case.named else None)
    return checkpoint, scorer


@pytest.mark.parametrize("name", CASES)
def test_family_scores_as_its_authors_do(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    checkpoint, scorer = exported(name, tmp_path)
    assert (scorer.recipe.family, scorer.recipe.aggregate) == (name, case.aggregate)
    seen: list[float] = []
    compared = 0
    for problem, given in [HARD, *RECORDS]:
        steps = given if scorer.recipe.split.separator is not None else ["\n".join(given)]
        if "\n\n" in "".join(steps) and name == "llemma":
            continue
        scores = scorer.score(problem, steps).scores
        if None in scores:
            continue
        texts = [step.strip() for step in steps] if case.strip else steps
        np.testing.assert_allclose(scores, case.judge(checkpoint, problem, texts), atol=1e-4)
        seen += [score for score in scores if score is not None]
        compared += 1
        if compared == LONG_ENOUGH:
            break
    assert compared == LONG_ENOUGH
    assert np.ptp(seen) > 0.2
