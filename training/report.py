"""Invariance checks and the EVAL.md file.

In: a scorer, finished rows. Out: mean score shifts under rewriting that keeps the meaning,
and the Markdown report. Imports its siblings only.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from . import real
from .generator import Context, draw
from .scoring import Score

if TYPE_CHECKING:
    from .evaluate import Row
    from .naming import Naming

log = logging.getLogger("training")

NOTES = Path(__file__).with_name("EVAL_NOTES.md")


def rename(text: str) -> str:
    """Write y for x (texts with a y already are left out by the caller)."""
    return re.sub(r"(?<![A-Za-z])x(?![A-Za-z])", "y", text)


def space(text: str) -> str:
    """Put spaces around binary signs, as one would by hand."""
    out = re.sub(r"\s*=\s*", " = ", text)
    return re.sub(r"(?<=[\dA-Za-z).])([-+*/])(?=[\dA-Za-z(.-])", r" \1 ", out)


def cross(text: str) -> str:
    """Write × for *."""
    return text.replace("*", "×")


REWRITES: dict[str, tuple[Callable[[str], str], Callable[[str], bool]]] = {
    "rename x to y": (
        rename,
        lambda t: (
            bool(re.search(r"(?<![A-Za-z])x(?![A-Za-z])", t))
            and "y" not in t
            and not re.search(r"\d x [\d$]", t)
        ),
    ),
    "add spaces": (space, lambda t: space(t) != t and not re.search("[A-Za-z]{3}-|\\\\", t)),
    "× for *": (cross, lambda t: "*" in t),
}


def invariance(score: Score, data: Path, count: int) -> dict[str, tuple[float, int]]:
    """Mean |change of score| under each rewriting: (mean, number of lines)."""
    context = Context(random.Random(23), "heldout")
    cases = [draw(context) for _ in range(8 * count)]
    cases += real.tutor_moves(data, "heldout")[:count]
    out = {}
    for name, (rewrite, applies) in REWRITES.items():
        shifts: list[float] = []
        for case in cases:
            problem, steps = case.problem, [line.text for line in case.lines]
            if len(shifts) >= 3 * count or not applies(
                "\n".join([problem, *steps]).replace("Solve for y", "")
            ):
                continue
            after = score(rewrite(problem), [rewrite(s) for s in steps])
            shifts += [abs(a - b) for a, b in zip(score(problem, steps), after, strict=True)]
        out[name] = (sum(shifts) / max(1, len(shifts)), len(shifts))
    return out


def table(rows: Iterable[Row]) -> list[str]:
    """Markdown lines of the main table."""
    out = [
        "| set | figure to reach | reached | measured [95% interval] | cases | exact SymPy check |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        reached = "-" if r.reached is None else "yes" if r.reached else "no"
        cells = (r.name, r.target, reached, r.figure, str(r.cases), r.rival)
        out.append(f"| {' | '.join(cells)} |")
    return out


def write(
    path: Path,
    rows: list[Row],
    families: dict[str, tuple[int, int]],
    shifts: dict[str, tuple[float, int]],
    broken: Row,
    naming: Naming | None,
    seconds: float,
) -> None:
    """Write the report; the words that need judgement come from EVAL_NOTES.md."""
    out = ["# Evaluation of the default checkpoint", ""]
    out += [
        "Written by `python -m training.evaluate`; do not edit. Threshold 0.5 on every row.",
        "",
    ]
    out += [*table(rows), ""]
    out += [
        "## Rewriting that keeps the meaning",
        "",
        "| rewriting | mean change of score (<= 0.05) | lines |",
        "|---|---|---|",
    ]
    out += [f"| {name} | {mean:.4f} | {n} |" for name, (mean, n) in shifts.items()]
    out += ["", "## Weights permuted", ""]
    out += ["With the elements of every tensor shuffled, the AUC on the held-out real moves is"]
    out += [f"{broken.figure}: nothing but the network computes the scores.", ""]
    out += [
        "## First-error accuracy by family (held-out synthetic)",
        "",
        "| family | right | of |",
        "|---|---|---|",
    ]
    out += [f"| {name} | {hit} | {n} |" for name, (hit, n) in families.items()]
    if naming is not None:
        out += [
            "",
            "## Kinds of error named (held-out synthetic, wrong lines that are flagged)",
            "",
        ]
        out += ["| kind | lines | named rightly | taken for |", "|---|---|---|---|"]
        out += [f"| {kind} | {n} | {hit} | {rest} |" for kind, n, hit, rest in naming.confusion()]
    out += ["", f"Measured in {seconds:.0f} s on one core.", ""]
    if NOTES.exists():
        out.append(NOTES.read_text(encoding="utf-8"))
    path.write_text("\n".join(out), encoding="utf-8")
    log.info("%s", "\n".join(out))
