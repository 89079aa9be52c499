"""Tiny int8 packages for tests: few texts, and plans that the test chooses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from prm_edge_export.options import ExportOptions
from prm_edge_export.pipeline import export
from prm_edge_export.quantization import search

SOLUTIONS: list[dict[str, Any]] = [
    {
        "problem": f"Ana buys {n} kites at {n + 3} dollars. What do they cost?",
        "steps": [f"Each costs {n + 3}.", f"{n} × {n + 3} = {n * (n + 3)}", f"So ${n * (n + 3)}."],
    }
    for n in range(2, 12)
]
VERIFIED: list[dict[str, Any]] = [
    {
        "problem": "A shop sells 12 apples for $3. How much do 20 apples cost?",
        "steps": ["12 apples cost $3, so one costs 3 / 12 = $0.25.", "20 * 0.25 = 5", "So $5."],
        "label": -1,
    },
    {"problem": "Solve 2x + 3 = 11.", "steps": ["2x = 8", "x = 5", "\\boxed{5}"], "label": 1},
    {"problem": "What is ½ of 7?", "steps": ["7 / 2 = 3.5", "", "  so 3,5 — done\n"], "label": -1},
]
KINDS_IN_TURN = ("int8", "int8x2", "fp32")


def write_texts(path: Path, solutions: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in solutions), encoding="utf-8")
    return path


def plan_in_turn(patch: pytest.MonkeyPatch, kinds: Sequence[str] = KINDS_IN_TURN) -> None:
    """Give the linears of a model these kinds in turn, whatever they cost."""

    def search_nothing(calibration: Any, build: Any, say: Any) -> Any:
        names = [(unit.layer, unit.unit) for unit in calibration.units]
        plan = dict(zip(names, cycle(kinds), strict=False))
        return plan, build(plan)

    patch.setattr(search, "find_plan", search_nothing)


def export_int8(checkpoint: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Export with a handful of solutions; the report, with the lines that were said."""
    texts = out.parent / "texts"
    given: dict[str, Any] = {
        "precision": "int8",
        "separator": "\n",
        "allow_drift": True,  # of three solutions one at the threshold is too many already
        "calibration": write_texts(texts / "calibration.jsonl", SOLUTIONS),
        "verify": write_texts(texts / "verify.jsonl", VERIFIED),
        **options,
    }
    lines: list[str] = []
    result = export(ExportOptions(checkpoint=checkpoint, out=out, **given), lines.append)
    return {**result.report, "lines": lines}
