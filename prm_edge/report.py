"""One self-contained HTML page from scored solutions.

In: samples with their text. Out: the bytes of a page that loads nothing. The template is
``data/report.html``; text goes in as JSON, and into the page as text nodes only. Imports nothing
but the standard library, numpy and the runtime.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

import numpy as np

from prm_edge_runtime import results, scoring
from prm_edge_runtime.errors import InputError
from prm_edge_runtime.version import __version__

from .error_words import looks_like
from .evaluation import BINS, Figures, judge, known_steps, processbench, reliability
from .samples import Sample, as_result, by_problem

TEMPLATE: Final = "data/report.html"
WIDTH: Final = 320
HEIGHT: Final = 190
LEFT: Final = 40
BOTTOM: Final = 30
DECIMALS: Final = 4
# What a step's status says beside its score; another word of another writer is shown as it is.
REASONS: Final = {
    results.SCORED: "",
    results.TOO_LONG: "no score: it ends beyond the length that the package scores",
    results.WINDOWED: "scored with the problem and only the last steps before it",
    results.OUT_OF_DOMAIN: "no score: outside what the model was trained on",
}
NO_REASON: Final = "no score; the file does not say why"


def render(samples: Sequence[Sample], *, title: str, threshold: float, by: str) -> bytes:
    """The page.

    Raises:
        InputError: when a sample has scores and no steps, or there is no sample.
    """
    if not samples:
        raise InputError("there are no scored solutions to show")
    for sample in samples:
        if len(sample.steps) != len(sample.scores):
            raise InputError(
                f"{sample.name} has scores and no steps to show: score with --text, which writes "
                "problem and steps too"
            )
    values = np.array([s for sample in samples for s in sample.scores if s is not None])
    low, high = (0.0, 1.0)
    if len(values) and (values.min() < 0 or values.max() > 1):
        low, high = float(values.min()), float(values.max())
    data = {"low": low, "high": high, "groups": _groups(samples, threshold, by)}
    page = files("prm_edge").joinpath(TEMPLATE).read_text(encoding="utf-8")
    parts = {
        "__TITLE__": html.escape(title),
        "__SUMMARY__": html.escape(_summary(samples, threshold)),
        "__PLOTS__": _histogram(values, low, high) + _reliability(samples),
        "__VERSION__": __version__,
        # in a script element only < could end it
        "__DATA__": json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace(
            "<", "\\u003c"
        ),
    }
    # in one pass: text of a solution that spells a placeholder stays text
    pieces = [page]
    for placeholder, text in parts.items():
        pieces = _fill(pieces, placeholder, text)
    return "".join(pieces).encode("utf-8")


def _fill(pieces: list[str], placeholder: str, text: str) -> list[str]:
    """Replace a placeholder in the template's pieces (the even ones), never in what was filled."""
    filled: list[str] = []
    for index, piece in enumerate(pieces):
        if index % 2:
            filled.append(piece)
            continue
        first, *rest = piece.split(placeholder)
        filled.append(first)
        for part in rest:
            filled += [text, part]
    return filled


def _groups(samples: Sequence[Sample], threshold: float, by: str) -> list[dict[str, Any]]:
    groups = []
    for members in by_problem(samples).values():
        ranking = results.rank(tuple(as_result(s, threshold, by) for s in members), by)
        groups.append(
            {
                "q": members[0].problem,
                "items": [
                    {
                        **_beside(sample),
                        "n": sample.name,
                        "s": list(sample.steps),
                        "p": [None if s is None else round(s, DECIMALS) for s in sample.scores],
                        "v": scoring.verdict(sample.scores, threshold),
                        "e": scoring.first_error(sample.scores, threshold),
                        "l": sample.truth.first_error(),
                        "a": sample.truth.answer,
                        "b": len(members) > 1 and index == ranking.best,
                    }
                    for index, sample in enumerate(members)
                ],
            }
        )
    return groups


def _beside(sample: Sample) -> dict[str, Any]:
    """What is told of each step beside its score, where there is anything to tell."""
    status = sample.status or [
        NO_REASON if score is None else results.SCORED for score in sample.scores
    ]
    words = [REASONS.get(one, one) for one in status]
    told: dict[str, Any] = {"w": words} if any(words) else {}
    if any(sample.error_kinds):
        told["k"] = [kind and looks_like(kind) for kind in sample.error_kinds]
    if sample.redundancy is not None:
        told["r"] = [None if r is None else round(r, DECIMALS) for r in sample.redundancy]
    return told


def _summary(samples: Sequence[Sample], threshold: float) -> str:
    verdicts = [scoring.verdict(sample.scores, threshold) for sample in samples]
    counts = ", ".join(
        f"{verdicts.count(name)} {name}"
        for name in (scoring.SOUND, scoring.FLAWED, scoring.UNKNOWN)
    )
    text = f"{len(samples)} solutions: {counts}. A score below {threshold:g} is an error."
    found = processbench(judge(samples, threshold))
    if found is not None:
        text += f" The first error is the labelled one for {found['accuracy']:.1%}"
        text += f", F1 {found['f1']:.1%}." if found["f1"] is not None else "."
    return text


def _histogram(values: Any, low: float, high: float) -> str:
    counts, edges = np.histogram(values, bins=2 * BINS, range=(low, high))
    most = max(int(counts.max()), 1)
    width = (WIDTH - LEFT) / len(counts)
    bars = "".join(
        f'<rect x="{LEFT + index * width:.1f}" y="{_y(count / most):.1f}" '
        f'width="{width - 1:.1f}" height="{_y(0) - _y(count / most):.1f}" fill="var(--good)"/>'
        for index, count in enumerate(counts)
    )
    rows = [(f"{edges[i]:.2f} to {edges[i + 1]:.2f}", str(n)) for i, n in enumerate(counts) if n]
    axes = _axes(f"{low:g}", f"{high:g}", "0", str(most))
    return _figure(
        "Scores of all steps", f"Histogram of {len(values)} scores", bars + axes,
        ("score", "steps"), rows,
    )  # fmt: skip


def _reliability(samples: Sequence[Sample]) -> str:
    scores, good, _ = known_steps(samples)
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return ""
    table = [row for row in reliability(scores, good) if row["n"]]
    diagonal = (
        f'<line x1="{LEFT}" y1="{_y(0)}" x2="{WIDTH}" y2="{_y(1)}" stroke="var(--soft)" '
        'stroke-dasharray="4 4"/>'
    )
    points = [(_x(row["mean_score"]), _y(row["share_good"])) for row in table]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    marks = f'<polyline points="{path}" fill="none" stroke="var(--good)" stroke-width="2"/>'
    marks += "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var(--good)"/>' for x, y in points
    )
    rows = [_reliability_row(row) for row in table]
    return _figure(
        "Share of good steps by score (dashed: as it should be)",
        f"Reliability of {len(scores)} labelled steps",
        diagonal + marks + _axes("0", "1", "0", "1"),
        ("mean score", "good", "steps"),
        rows,
    )


def _reliability_row(row: Figures) -> tuple[str, ...]:
    return f"{row['mean_score']:.3f}", f"{row['share_good']:.3f}", str(row["n"])


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - 6)


def _y(share: float) -> float:
    return float(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - 12))


def _axes(left: str, right: str, bottom: str, top: str) -> str:
    base = _y(0)
    return (
        f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH}" y2="{base}" stroke="var(--soft)"/>'
        f'<text x="{LEFT}" y="{HEIGHT - 12}">{left}</text>'
        f'<text x="{WIDTH - 4}" y="{HEIGHT - 12}" text-anchor="end">{right}</text>'
        f'<text x="{LEFT - 5}" y="{base}" text-anchor="end">{bottom}</text>'
        f'<text x="{LEFT - 5}" y="{_y(1) + 8}" text-anchor="end">{top}</text>'
    )


def _figure(
    title: str, about: str, drawing: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]
) -> str:
    header = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{value}</td>" for value in row) + "</tr>" for row in rows)
    return (
        f"<figure><figcaption>{title}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{about}">{drawing}</svg>'
        f"<details><summary>Numbers</summary><table><thead><tr>{header}</tr></thead>"
        f"<tbody>{body}</tbody></table></details></figure>"
    )
